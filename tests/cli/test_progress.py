"""What a person sees of many, with and without a terminal."""

import io

import pytest

from services.cli.progress import show_meter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_counts_rate_and_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with show_meter("tasks", 10, 3, 1) as meter:
        for failed in (False, True):
            meter.count(failed=failed)
        meter.tell("the server is away")
    shown = screen.getvalue()
    assert "6/10" in shown
    assert "4 done, 2 failed" in shown
    assert "/s" in shown
    assert "the server is away" in shown


def test_without_a_terminal_only_what_is_waited_for_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with show_meter("tasks", 10, 0, 0) as meter:
        meter.count(failed=False)
        for text in ("away", "away", "", "away"):
            meter.tell(text)
    assert capsys.readouterr().err == "headrace: away\n"
