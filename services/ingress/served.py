"""What an answer says of who made it, in its headers."""

import string
from urllib.parse import quote

from services.ingress.http import Headers
from shared.messages import Chunks, Event, Finished, Reset, Started, Task
from shared.record import Record

NAMES = ("task", "model", "variant", "worker", "attempt", "cache")
"""Each behind `x-headrace-`. Those that say nothing are left out."""
_HEADERS = tuple(f"x-headrace-{name}".encode() for name in NAMES)
_PLAIN = string.punctuation.replace("%", "") + " "
"""Beside letters and digits, what stays as it is where something else has to be written in percent."""


class Served:
    """Gathered from what a subscription delivers: of the attempt whose output it delivered last."""

    __slots__ = ("attempt", "cache", "task", "task_id", "worker")

    def __init__(self, task_id: str, task: Task | None = None) -> None:
        """`task`: if it is known that this one is what was submitted."""
        self.task_id, self.task = task_id, task
        self.worker = self.cache = ""
        """`cache`: `hit` or `followed`, if the answer is that of another task."""
        self.attempt = 0

    def on_sync(self, record: Record) -> None:
        self.task, self.worker, self.attempt = record.task, record.worker, record.attempt

    def on_event(self, event: Event) -> None:
        match event:
            case Started():
                self.worker, self.attempt = event.worker, event.attempt
            case Chunks() | Reset():
                self._made_by(event.attempt)
            case Finished():
                self._made_by(event.attempt)
                self.cache = event.cache

    def _made_by(self, attempt: int) -> None:
        """Chunks that are caught up with may be those of an attempt before the one that is known."""
        if attempt != self.attempt:
            self.attempt, self.worker = attempt, ""

    def headers(self) -> Headers:
        task = self.task
        values = (
            self.task_id,
            task.model if task is not None else "",
            task.variant if task is not None else "",
            "" if self.cache else self.worker,
            "" if self.cache or not self.attempt else str(self.attempt),
            self.cache,
        )
        return [(name, _printable(value)) for name, value in zip(_HEADERS, values, strict=True) if value]


def _printable(value: str) -> bytes:
    """An invalid value would cost the client the whole answer. Models and variants are what the operator calls them."""
    if value.isascii() and value.isprintable():
        return value.encode()
    return quote(value, safe=_PLAIN, errors="replace").encode()
