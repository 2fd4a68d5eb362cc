"""One file against a plain bytearray: writes, holes, truncations, mappings, cold reads."""

import mmap
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

MAX = 300_000
offsets = st.integers(0, MAX - 1)
sizes = st.integers(1, 40_000)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), offsets, sizes),
        st.tuples(st.just("map"), offsets, sizes),
        st.tuples(st.just("truncate"), offsets, st.just(0)),
        st.tuples(st.just("append"), st.just(0), sizes),
        st.tuples(st.just("fsync"), st.just(0), st.just(0)),
        st.tuples(st.just("forget"), st.just(0), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
    ),
    min_size=1,
    max_size=25,
)


def pattern(number: int, size: int) -> bytes:
    return bytes([number % 255 + 1]) * size


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_a_file_is_what_was_put_into_it(folder: Path, history: list[tuple[str, int, int]]) -> None:
    """Whatever the order, and with the pages in the kernel's cache or not."""
    path = folder / "file"
    path.unlink(missing_ok=True)
    model = bytearray()
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        for number, (step, offset, size) in enumerate(history):
            payload = pattern(number, size)
            match step:
                case "write":
                    os.pwrite(fd, payload, offset)
                    model.extend(bytes(max(0, offset + size - len(model))))
                    model[offset : offset + size] = payload
                case "map" if len(model) > offset:
                    stop = min(offset + size, len(model))
                    with mmap.mmap(fd, len(model)) as mapping:
                        mapping[offset:stop] = payload[: stop - offset]
                    model[offset:stop] = payload[: stop - offset]
                case "truncate":
                    os.ftruncate(fd, offset)
                    del model[offset:]
                    model.extend(bytes(offset - len(model)))
                case "append":
                    os.lseek(fd, 0, os.SEEK_END)
                    os.write(fd, payload)
                    model += payload
                case "fsync":
                    os.fsync(fd)
                case "forget":
                    os.fsync(fd)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                case "reopen":
                    os.close(fd)
                    fd = os.open(path, os.O_RDWR)
            assert os.fstat(fd).st_size == len(model)
            assert os.pread(fd, len(model) + 1, 0) == model
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, len(model) + 1, 0) == model
    finally:
        os.close(fd)
