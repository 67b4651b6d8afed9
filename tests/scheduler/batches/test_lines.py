"""Lines come out whole and at their places, however the pieces were cut; memory is a piece and a line."""

from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as some

from services.scheduler.batches.lines import Line, lines


async def read(pieces: Sequence[bytes], limit: int = 100, *, offset: int = 0, number: int = 0) -> list[Line]:
    async def source() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return [line async for line in lines(source(), limit, offset=offset, number=number)]


async def test_lines_have_their_numbers_and_places() -> None:
    assert await read([b"one\ntwo\r\n\nfour"]) == [
        Line(1, 0, 4, b"one"),
        Line(2, 4, 9, b"two\r"),
        Line(4, 10, 14, b"four"),
    ]


async def test_empty_lines_and_an_empty_file_are_no_lines() -> None:
    assert await read([b"\n \n\t\r\n"]) == []
    assert await read([]) == []


async def test_line_that_is_too_long_is_dropped_and_the_next_one_is_whole() -> None:
    pieces = [b"x" * 60, b"x" * 60, b"x\nshort\n", b"y" * 200]
    assert await read(pieces) == [Line(1, 0, 122, None), Line(2, 122, 128, b"short"), Line(3, 128, 328, None)]


@given(
    data=some.binary(max_size=200).map(lambda data: data.replace(b"\0", b"\n")), cuts=some.lists(some.integers(0, 200))
)
async def test_how_the_file_is_cut_changes_nothing(data: bytes, cuts: list[int]) -> None:
    ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    pieces = [data[begin:end] for begin, end in pairwise(ends)]
    whole = await read([data] if data else [])
    assert await read(pieces) == whole
    for line in whole:
        assert data[line.offset : line.behind].rstrip(b"\n") == (line.text or b"").rstrip(b"\n") or line.text is None


async def test_reading_on_from_a_line_gives_the_same_rest() -> None:
    data = b"one\n\nthree\nfour\n"
    whole = await read([data])
    for before, line in enumerate(whole):
        assert await read([data[line.behind :]], offset=line.behind, number=line.number) == whole[before + 1 :]
