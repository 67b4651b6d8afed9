"""How a person is told that a task waits."""

import io
from typing import Any

import pytest

from services.cli.line import of_status, of_view, ordinal, roughly
from services.cli.printer import Printer
from services.cli.progress import Ticker
from services.cli.tasks import short_place


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"why": "slots", "pos": 3, "eta_ms": 12_400}, "3rd in line, about 12 s"),
        ({"why": "slots", "pos": 1, "eta_ms": 200}, "1st in line, starts in a moment"),
        ({"why": "slots", "pos": 2}, "2nd in line"),
        ({"why": "no_worker", "pos": 11}, "11th in line, no worker is there"),
        ({"why": "later", "eta_ms": 600_000, "due_ms": 1}, "its time has not come, about 10 min"),
        ({"why": "following"}, "another task makes the same answer"),
        ({"why": "handed_out", "eta_ms": 0}, "starts in a moment"),
        ({"why": "a reason of a later version"}, "waits"),
        ({"lane": "normal", "model": "m"}, ""),
    ],
)
def test_a_place_is_told_in_words(info: dict[str, Any], words: str) -> None:
    assert of_status(info) == words


def test_a_view_tells_the_same_as_a_status() -> None:
    view = {"status": "pending", "waits_for": "slots", "position": 3, "eta_ms": 12_400}
    assert of_view(view) == "3rd in line, about 12 s"
    assert short_place(view) == "3 ~12 s"
    assert of_view({"status": "processing"}) == ""
    assert short_place({"status": "processing"}) == "-"
    assert short_place({"waits_for": "no_worker", "position": 3}) == "3"


def test_numbers_are_counted_and_times_rounded_as_people_do() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th")
    ]
    assert [roughly(ms) for ms in (1000, 89_000, 91_000, 5_399_000, 7_200_000)] == [
        *("1 s", "89 s", "2 min", "90 min", "2 h")
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_on_a_terminal_is_written_over_and_goes() -> None:
    terminal = Terminal()
    ticker = Ticker(terminal)
    for text in ("a", "a", "b"):
        ticker.show(text)
    ticker.clear()
    ticker.clear()
    assert terminal.getvalue() == "\r\x1b[2Ka\r\x1b[2Kb\r\x1b[2K"


def test_where_nobody_watches_a_place_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(json=False, headed=False)
    for pos in (3, 2, 1):
        printer.show("t", {"t": "st", "status": "pending", "info": {"why": "slots", "pos": pos}})
    printer.show("t", {"t": "st", "status": "processing", "info": {"worker": "w", "attempt": 1}})
    printer.show("t", {"t": "d", "d": "text"})
    assert capsys.readouterr() == ("text", "[3rd in line]\n")


def test_who_watches_one_task_sees_its_place_until_it_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    printer = Printer(json=False, headed=False)
    for pos in (2, 1):
        printer.show("t", {"t": "st", "status": "pending", "info": {"why": "slots", "pos": pos}})
    printer.show("t", {"t": "st", "status": "processing", "info": {"worker": "w", "attempt": 1}})
    assert terminal.getvalue() == "\r\x1b[2K[2nd in line]\r\x1b[2K[1st in line]\r\x1b[2K"
