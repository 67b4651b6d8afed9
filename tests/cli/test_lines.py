"""How a file or a pipe becomes numbered lines."""

import asyncio
import os
from pathlib import Path

import pytest

from services.cli.failure import Failure
from services.cli.lines import Cutter, Line, open_source

TEXT = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": 2}\nlonger than ten bytes\nlast'
LINES = [Line(1, b'{"a": 1}\r'), Line(4, b'{"b": 2}'), Line(5, b"", "it is longer than 13 bytes"), Line(6, b"last")]


def cut(*pieces: bytes) -> list[Line]:
    cutter = Cutter(longest_bytes=13)
    return [line for piece in (*pieces, b"") for line in cutter.cut(piece)]


def test_lines_are_the_same_wherever_the_pieces_end() -> None:
    for end in range(1, len(TEXT)):
        assert cut(TEXT[:end], TEXT[end:]) == LINES
    assert cut(*(TEXT[at : at + 1] for at in range(len(TEXT)))) == LINES


@pytest.mark.parametrize("text", [b"", b"\n", b" \n\n", b"\xef\xbb\xbf"])
def test_what_is_empty_has_no_lines(text: bytes) -> None:
    assert cut(*([text] if text else [])) == []


def test_a_line_that_is_too_long_is_not_held() -> None:
    cutter = Cutter(longest_bytes=1000)
    for _ in range(1000):
        assert list(cutter.cut(b"x" * 999)) == []
        assert len(cutter._begun) <= 1000
    (line,) = cutter.cut(b"\n")
    assert line.fault


async def read(name: str) -> list[int]:
    with open_source(name) as source:
        return [line.number async for line in source.lines()]


async def test_a_file_tells_what_it_holds_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\n\ntwo\n")
    (tmp_path / "b").write_bytes(b"one\n\ntwo\n")
    (tmp_path / "c").write_bytes(b"one\n\ntwo")
    identities = []
    for name in "abc":
        with open_source(str(tmp_path / name)) as source:
            identities.append(source.identity)
    assert identities[0] is not None
    assert (identities[0].lines, identities[0].last) == (2, 3)
    assert identities[0] == identities[1] != identities[2]
    assert await read(str(tmp_path / "c")) == [1, 3]


async def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one\n")
    with open_source(str(file)) as source:
        file.write_bytes(b"two\n")
        with pytest.raises(Failure, match="has changed while it was read"):
            [line async for line in source.lines()]


async def test_a_pipe_gives_its_lines_as_they_come_and_a_quiet_one_holds_up_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = await asyncio.to_thread(lambda: [os.open(pipe, os.O_RDWR)][0])
    try:
        with open_source(str(pipe)) as source:
            assert source.identity is None
            lines = source.lines()
            os.write(writer, b"one\ntw")
            assert (await anext(lines)).content == b"one"
            waiting = asyncio.ensure_future(anext(lines))
            os.write(writer, b"o\n")
            assert (await waiting).content == b"two"
            waiting = asyncio.ensure_future(anext(lines))
            await asyncio.sleep(0)
            waiting.cancel()
            assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)
            os.write(writer, b"for the thread that still reads\n")
    finally:
        os.close(writer)


@pytest.mark.parametrize(("name", "why"), [("gone", "--text"), (".", "is a folder")])
def test_what_is_no_file_is_told_with_the_remedy(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(Failure, match=why), open_source(str(tmp_path / name)):
        pass
