"""Items survive the way between the two sides."""

from hypothesis import given
from hypothesis import strategies as st

from kaifs.service.steps import Data, End, Entry, Item, ItemStream, Total, frame_item

ITEMS: list[Item] = [
    Total(2, 5),
    Entry(b"", 0o40755, 0, 0, 0, 0, -1, 1),
    Entry(b"a\xff", 0o100644, 1, 2, 5, 0, 3, 4, ((b"user.x", b"\0"),), b"", (8, 9)),
    Data(0, b"hello"),
    End(),
]


@given(st.lists(st.integers(1, 40), min_size=1))
def test_items_arrive_however_the_stream_is_cut(sizes: list[int]) -> None:
    """Frames carry their length, so no cut of the bytes matters."""
    stream = b"".join(map(frame_item, ITEMS))
    cutter = ItemStream()
    found: list[Item] = []
    position = turn = 0

    while position < len(stream):
        size = sizes[turn % len(sizes)]
        found += cutter.feed(stream[position : position + size])
        position += size
        turn += 1

    assert found == ITEMS
