"""A script is read from its header: what it is given, what it answers, what stays true."""

import re
from pathlib import Path

import pytest
from msgspec import Struct
from msgspec.structs import fields

from services.inference.scripts import Emission, Ending, Hand
from services.scheduler.scripts import Arrival
from shared.submit import SubmitItem
from tests.architecture.sources import ROOT, lua_files, name_of

LONGEST = 80
"""Lines of a script, header included."""

NUMBERED = re.compile(r"\b(KEYS|ARGV)\[(\d+)\]")

Stride = tuple[str, type[Struct], int]
STRIDES: list[Stride] = [
    ("shared/lua/submit.lua", SubmitItem, 7),
    ("services/scheduler/lua/admit.lua", Arrival, 2),
    ("services/inference/lua/start.lua", Hand, 3),
    ("services/inference/lua/emit.lua", Emission, 6),
    ("services/inference/lua/finish.lua", Ending, 11),
]


def header(text: str) -> str:
    lines = text.splitlines()[1:]
    end = next(n for n, line in enumerate(lines) if not line.startswith("--"))
    return "\n".join(lines[:end])


def body(text: str) -> str:
    """The code behind the header, without comments."""
    rest = text[text.index(header(text)) + len(header(text)) :]
    return re.sub(r"--.*", "", rest)


@pytest.mark.parametrize("path", lua_files(), ids=name_of)
def test_script_begins_with_its_shebang_and_a_whole_header(path: Path) -> None:
    text = path.read_text()
    assert re.fullmatch(r"#!lua( flags=allow-oom)?", text.splitlines()[0])
    parts = [rf"^-- {path.stem}: \S", *(rf"^-- {word} +\S" for word in ("KEYS", "ARGV", "RETURNS", "INVARIANT"))]
    places = [match.start() if (match := re.search(part, header(text), re.MULTILINE)) else -1 for part in parts]
    assert -1 not in places, f"the header lacks {parts[places.index(-1)]}"
    assert places == sorted(places)
    assert len(text.splitlines()) <= LONGEST


def test_only_what_makes_new_data_is_refused_when_memory_is_full() -> None:
    refused = {path.stem for path in lua_files() if "allow-oom" not in path.read_text().splitlines()[0]}
    assert refused == {"submit", "reserve"}


@pytest.mark.parametrize("path", lua_files(), ids=name_of)
def test_keys_and_arguments_are_named_in_the_first_block_and_never_numbered_again(path: Path) -> None:
    """What a loop or a table of the script computes is no literal, and may stand."""
    code = body(path.read_text())
    first, _, rest = code.lstrip("\n").partition("\n\n")
    assert NUMBERED.findall(first)
    assert NUMBERED.findall(rest) == []
    for kind in ("KEYS", "ARGV"):
        numbers = sorted(int(number) for found, number in NUMBERED.findall(first) if found == kind)
        assert numbers == sorted(set(numbers)), "an index is bound twice"


@pytest.mark.parametrize(("name", "kind", "stride"), STRIDES, ids=[name for name, *_ in STRIDES])
def test_items_of_a_script_have_the_fields_of_their_struct(name: str, kind: type[Struct], stride: int) -> None:
    text = (ROOT / name).read_text()
    assert len(fields(kind)) == len(arguments_of_an_item(header(text))) == stride
    assert re.search(rf"#ARGV(?: - \d+\))? / {stride} - 1 do", text)
    assert re.search(rf"item \* {stride}\b", text)


def arguments_of_an_item(header: str) -> list[str]:
    """What the line ARGV of a header says behind `per task:` or `per arrival:`, without what is in brackets."""
    given = header[header.index("-- ARGV") : header.index("-- RETURNS")].replace("\n--", " ")
    _, _, item = re.sub(r"\([^)]*\)", "", given).partition("per ")
    return [argument.strip() for argument in item.partition(":")[2].split(",")]
