"""Where a file is cut into blocks.

The cut points depend on content only, so a byte inserted at the front of a
large file changes one block and not all of them, and the same bytes give the
same blocks whoever wrote them in whatever pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pyfastcdc import FastCDC

INLINE_MAX: Final = 512
"""A run of at most so many bytes is kept in the tree itself, bytes."""
WHOLE_MAX: Final = 128 * 1024
"""A file of at most so many bytes is one block, bytes."""
CHUNK_MIN: Final = 64 * 1024
CHUNK_AVERAGE: Final = 256 * 1024
CHUNK_MAX: Final = 1024 * 1024
"""Also the largest payload of any block, bytes."""


@cache
def _chunker() -> FastCDC:
    # pyfastcdc takes 20 ms to import; small files never need it.
    from pyfastcdc import FastCDC

    return FastCDC(CHUNK_AVERAGE, min_size=CHUNK_MIN, max_size=CHUNK_MAX, normalized_chunking=1)


class Chunker:
    """Cuts a stream of bytes that arrives in pieces, as `cut` would cut the whole."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._cut_before = False

    def feed(self, piece: bytes | memoryview) -> Iterator[bytes]:
        """Take in *piece*; yield the chunks that are complete."""
        self._pending += piece
        # Only with CHUNK_MAX bytes in view is a cut the one that the whole stream would give.
        while len(self._pending) >= max(CHUNK_MAX, WHOLE_MAX + 1):
            window = bytes(self._pending[:CHUNK_MAX])
            length = next(_chunker().cut_buf(window)).length
            self._cut_before = True
            yield window[:length]
            del self._pending[:length]

    def finish(self) -> Iterator[bytes]:
        """Yield what is left: one chunk if the whole stream was small. Then a new stream begins."""
        rest, cut_before = bytes(self._pending), self._cut_before
        self._pending.clear()
        self._cut_before = False
        yield from _cut_long(rest) if cut_before else cut(rest)


def cut(payload: bytes) -> Iterator[bytes]:
    """Yield the chunks of a whole *payload*, in order; none if it is empty."""
    if len(payload) > WHOLE_MAX:
        yield from _cut_long(payload)
    elif payload:
        yield payload


def _cut_long(payload: bytes) -> Iterator[bytes]:
    view = memoryview(payload)
    while len(view) > 0:
        length = next(_chunker().cut_buf(view[:CHUNK_MAX])).length
        yield bytes(view[:length])
        view = view[length:]
