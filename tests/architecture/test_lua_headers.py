"""A script is read from its header: what it is given, what it answers, what stays true; a library from what it needs."""

import re
from pathlib import Path

import pytest
from msgspec import Struct
from msgspec.structs import fields

from services.inference.scripts import Emission, Ending, Hand, Release
from services.scheduler.batches.scripts import Ended, Opened
from services.scheduler.scripts import Arrival, Look
from shared.bus.script import Script
from shared.quota import Settling, Taking
from shared.submit import SubmitItem
from tests.architecture.sources import ROOT, lua_libraries, lua_scripts, name_of

LONGEST = 80
"""Lines of a script, header included."""
LONGEST_LIBRARY = 150

NUMBERED = re.compile(r"\b(KEYS|ARGV)\[(\d+)\]")
USES = re.compile(r"^-- USES (.+)$", re.MULTILINE)

Stride = tuple[str, type[Struct], int]
STRIDES: list[Stride] = [
    ("shared/lua/submit.lua", SubmitItem, 22),
    ("shared/lua/take.lua", Taking, 2),
    ("shared/lua/settle.lua", Settling, 2),
    ("services/scheduler/lua/admit.lua", Arrival, 3),
    ("services/scheduler/lua/repair.lua", Look, 2),
    ("services/scheduler/lua/batch_feed.lua", Opened, 2),
    ("services/scheduler/lua/batch_end.lua", Ended, 2),
    ("services/inference/lua/start.lua", Hand, 3),
    ("services/inference/lua/emit.lua", Emission, 6),
    ("services/inference/lua/finish.lua", Ending, 12),
    ("services/inference/lua/release.lua", Release, 15),
]


def header(text: str) -> str:
    lines = text.splitlines()[1:]
    end = next(n for n, line in enumerate(lines) if not line.startswith("--"))
    return "\n".join(lines[:end])


def body(text: str) -> str:
    """The code behind the header, without comments."""
    rest = text[text.index(header(text)) + len(header(text)) :]
    return re.sub(r"--.*", "", rest)


@pytest.mark.parametrize("path", lua_scripts(), ids=name_of)
def test_script_begins_with_its_shebang_and_a_whole_header(path: Path) -> None:
    text = path.read_text()
    assert re.fullmatch(r"#!lua( flags=(allow-oom|no-writes))?", text.splitlines()[0])
    parts = [rf"^-- {path.stem}: \S", *(rf"^-- {word} +\S" for word in ("KEYS", "ARGV", "RETURNS", "INVARIANT"))]
    places = [match.start() if (match := re.search(part, header(text), re.MULTILINE)) else -1 for part in parts]
    assert -1 not in places, f"the header lacks {parts[places.index(-1)]}"
    assert places == sorted(places)
    assert len(text.splitlines()) <= LONGEST


def test_only_what_makes_new_data_is_refused_when_memory_is_full() -> None:
    refused = {
        path.stem for path in lua_scripts() if not re.search("allow-oom|no-writes", path.read_text().splitlines()[0])
    }
    assert refused == {"submit", "reserve"}


@pytest.mark.parametrize("path", lua_scripts(), ids=name_of)
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
    common, item = arguments(header(text))
    assert len(fields(kind)) == len(item) == stride
    counted = rf"\(#ARGV - {len(common)}\)" if common else "#ARGV"
    assert re.search(rf"{counted} / {stride} - 1 do", text)
    assert re.search(rf"item \* {stride}\b", text)


def arguments(header: str) -> tuple[list[str], list[str]]:
    """What the line ARGV of a header says before and behind `per task:` or `per arrival:`, without what is in brackets."""
    given = header[header.index("-- ARGV") + 7 : header.index("-- RETURNS")].replace("\n--", " ")
    common, _, item = re.sub(r"\([^)]*\)", "", given).partition("per ")
    return split(common.removesuffix("then ")), split(item.partition(":")[2])


def split(listed: str) -> list[str]:
    return [word for part in listed.split(",") if (word := part.strip())]


@pytest.mark.parametrize("path", lua_libraries(), ids=name_of)
def test_library_begins_with_its_purpose_and_knows_neither_keys_nor_arguments(path: Path) -> None:
    text = path.read_text()
    assert re.match(rf"-- {path.stem}: \S", text)
    assert re.findall(r"\b(KEYS|ARGV)\b", text) == []
    assert len(text.splitlines()) <= LONGEST_LIBRARY
    assert any(path.stem in used(script.read_text()) for script in lua_scripts()), "no script uses it"


@pytest.mark.parametrize("path", lua_scripts(), ids=name_of)
def test_script_gives_its_libraries_what_they_need(path: Path) -> None:
    text = path.read_text()
    first, _, _ = body(text).lstrip("\n").partition("\n\n")
    bound = set(re.findall(r"\w+", " ".join(re.findall(r"^local ([\w, ]+) =", first, re.MULTILINE))))
    before: set[str] = set()
    for name in used(text):
        libraries, names = needs((ROOT / "shared" / "lua" / "lib" / f"{name}.lua").read_text())
        assert libraries <= before, f"{name} stands before what it needs"
        assert names <= bound, f"{name} needs {names - bound}"
        before.add(name)


@pytest.mark.parametrize("path", lua_scripts(), ids=name_of)
def test_libraries_are_part_of_the_script_that_redis_gets(path: Path) -> None:
    script = Script(".".join(path.relative_to(ROOT).parts[:-2]), path.stem)
    assert USES.search(script.source) is None
    for name in used(path.read_text()):
        assert f"\n-- {name}: " in script.source


def used(text: str) -> list[str]:
    """The libraries of a script, in their order."""
    found = USES.findall(text)
    assert len(found) <= 1
    return found[0].split(", ") if found else []


def needs(library: str) -> tuple[set[str], set[str]]:
    """Other libraries, and names that the script binds: `-- NEEDS a, b; name (what it is), name.`"""
    match = re.search(r"^-- NEEDS (.+)$", library, re.MULTILINE)
    libraries, _, names = re.sub(r" \([^)]*\)", "", match[1] if match else "").partition(".")[0].partition(";")
    return set(split(libraries)), set(split(names))
