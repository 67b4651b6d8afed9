"""Keys have one author."""

from pathlib import Path

import pytest

from shared.keys import PREFIX
from tests.architecture.sources import ROOT, lua_files, name_of, python_files, strings_of

AUTHOR = ROOT / "shared" / "keys.py"


def test_prefix_is_written_in_one_file() -> None:
    assert any(text.startswith(PREFIX) for text in strings_of(AUTHOR))
    writers = {name_of(path) for path in python_files() if any(text.startswith(PREFIX) for text in strings_of(path))}
    assert writers == {name_of(AUTHOR)}


@pytest.mark.parametrize("path", lua_files(), ids=name_of)
def test_scripts_are_given_their_keys(path: Path) -> None:
    assert PREFIX not in path.read_text()
