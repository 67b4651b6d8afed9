"""What the clients asked for, and the append-only history of what they did and saw."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from shared.clock import monotonic_s


class Ticket(Struct, frozen=True, kw_only=True):
    """One task as its client wants it."""

    key: str
    """The producer's own key; no two tickets of a run share one."""
    door: str
    text: str
    expected: str
    """The text that the answer must have; empty: it cannot complete."""
    max_tokens: int = 0
    expires_in_s: float = 0.0
    cancel_after_s: float | None = None
    poison: str = ""
    streamed: bool = True
    wishes: dict[str, str] = {}
    """Tenant, lane and the like, by the names of the envelope's fields."""


class Event(Struct, frozen=True):
    at_s: float
    """Since the start of the run."""
    key: str
    what: str
    """submitted | acknowledged | seen (an end) | cancelling | left | broken (its connection) | gap | fault | …"""
    details: dict[str, Any] = {}


class Story(Struct):
    """The events of one ticket."""

    ticket: Ticket
    events: list[Event] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Some client has seen its end."""

    def of(self, what: str) -> Iterator[Event]:
        return (event for event in self.events if event.what == what)

    @property
    def ids(self) -> list[str]:
        return sorted({event.details["id"] for event in self.of("acknowledged") if event.details.get("id")})

    @property
    def acknowledged(self) -> bool:
        return any(True for _ in self.of("acknowledged"))


class History:
    """Kept in memory for the audit, and in a file for whoever looks for a bug."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("wb", buffering=1 << 16)
        self._began_s = monotonic_s()
        self.stories: dict[str, Story] = {}
        self.others: list[Event] = []
        self.by_id: dict[str, str] = {}
        self.counts: dict[str, int] = defaultdict(int)

    def now_s(self) -> float:
        return round(monotonic_s() - self._began_s, 3)

    def open(self, ticket: Ticket) -> Story:
        story = self.stories[ticket.key] = Story(ticket)
        self.note(ticket.key, "ticket", ticket=ticket)
        return story

    def note(self, key: str, what: str, /, **details: Any) -> Event:
        event = Event(self.now_s(), key, what, details)
        self._file.write(msgspec.json.encode(event) + b"\n")
        self.counts[what] += 1
        story = self.stories.get(key)
        if story is None:
            self.others.append(event)
            return event
        if what != "ticket":
            story.events.append(event)
        if details.get("id"):
            self.by_id[details["id"]] = key
        if what == "seen":
            story.ended.set()
        return event

    def close(self) -> None:
        self._file.close()
