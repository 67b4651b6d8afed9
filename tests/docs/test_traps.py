"""docs/traps.md names tests that exist."""

import re

from tests.docs.test_documents import ROOT, text

DEFINITION = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)


def test_every_test_that_the_traps_name_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", text("traps.md")))
    written = {name for path in (ROOT / "tests").rglob("test_*.py") for name in DEFINITION.findall(path.read_text())}
    assert named - written == set()
    assert len(named) > 40
