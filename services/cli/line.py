"""The place of a waiting task, in words."""

from collections.abc import Mapping
from typing import Any

from services.cli.view import View

REASONS = {
    "no_worker": "no worker is there",
    "tenant_running": "its tenant runs as many tasks as it may",
    "later": "its time has not come",
    "quota": "its tenant's quota is used up",
    "following": "another task makes the same answer",
}
ENDINGS = {1: "st", 2: "nd", 3: "rd"}


def of_view(view: View) -> str:
    """As GET /v1/tasks/ID tells it; empty: it does not wait."""
    return _words(view.get("waits_for", ""), view.get("position", 0), view.get("eta_ms"))


def of_status(info: Mapping[str, Any]) -> str:
    """As an `st` message of the WebSocket tells it; empty: it tells none."""
    return _words(info.get("why", ""), info.get("pos", 0), info.get("eta_ms"))


def _words(why: str, position: int, eta_ms: int | None) -> str:
    if not why:
        return ""
    parts = [f"{ordinal(position)} in line"] if position else []
    if why in REASONS:
        parts.append(REASONS[why])
    if eta_ms is not None:
        parts.append(f"about {roughly(eta_ms)}" if eta_ms >= 1000 else "starts in a moment")
    return ", ".join(parts) or "waits"


def ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ENDINGS.get(number % 10, 'th')}"


def roughly(ms: int) -> str:
    """An expected time, to no more digits than it deserves."""
    seconds = ms / 1000
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"
