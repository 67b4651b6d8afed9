"""Where followed tasks stand while they wait: looked up when the waiting begins, and again every few seconds."""

import asyncio
import logging
from typing import Protocol

from shared.errors import BusError
from shared.periodic import Periodic
from shared.place import Outlook, Outlooks

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
"""Short enough for a person who watches; a client counts down by itself between."""
MOST = 2000
"""Tasks looked up in one pass: 20 calls, about 50 ms of the server together. With more that wait, each has its turn less often."""
SELDOM = 10
"""Of so many passes one looks at all tasks: no event tells that a running one waits again, to be retried."""
SLACK_MS, SLACK_SHARE = 2000, 0.2
"""An expected start that moves by less is not told again."""


class Waiter(Protocol):
    """Who follows a task."""

    task_id: str
    waits: bool
    """As far as is known: the task is pending."""
    moves: int
    """Events so far: an answer that one has overtaken is void."""

    def on_outlook(self, outlook: Outlook | None) -> None:
        """None: the task does not wait."""


class Line:
    def __init__(self, outlooks: Outlooks, *, most: int = MOST) -> None:
        self._outlooks, self._most = outlooks, most
        self._waiters: dict[Waiter, None] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._passes = self._next = 0

    def join(self, waiter: Waiter) -> None:
        """It is told soon, and until it leaves, whenever its task waits."""
        self._waiters[waiter] = None
        if not waiter.waits:
            return
        asking = asyncio.create_task(self._ask_first(waiter))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)

    def leave(self, waiter: Waiter) -> None:
        self._waiters.pop(waiter, None)

    def refreshing(self) -> Periodic:
        return Periodic("the places of waiting tasks", INTERVAL_S, self.refresh)

    async def refresh(self) -> None:
        """One pass. Raises: BusError."""
        self._passes += 1
        due = [waiter for waiter in self._waiters if waiter.waits or self._passes % SELDOM == 0]
        start = self._next if self._next < len(due) else 0
        self._next = start + self._most
        await asyncio.gather(*(self._ask(waiter) for waiter in due[start : self._next]))

    async def _ask(self, waiter: Waiter) -> None:
        moves = waiter.moves
        outlook = await self._outlooks.of(waiter.task_id)
        if waiter in self._waiters and waiter.moves == moves:
            waiter.on_outlook(outlook)

    async def _ask_first(self, waiter: Waiter) -> None:
        try:
            await self._ask(waiter)
        except BusError as error:
            log.debug("the place of %s is told later: %s", waiter.task_id, error)


def has_changed(before: Outlook, now: Outlook, passed_ms: float) -> bool:
    """Would a client that was told `before`, `passed_ms` ago, and counts down by itself, want to know?"""
    if (before.why, before.due_ms, before.eta_ms < 0) != (now.why, now.due_ms, now.eta_ms < 0):
        return True
    if abs(now.position - before.position) >= max(1, before.position // 10):
        return True
    expected_ms = max(0.0, before.eta_ms - passed_ms)
    return now.eta_ms >= 0 and abs(now.eta_ms - expected_ms) > max(SLACK_MS, SLACK_SHARE * expected_ms)
