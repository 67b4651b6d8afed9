"""Where the tasks of an answer stand, as far as they wait."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from shared.lifecycle import State
from shared.place import Outlooks, Why


class Placed(Protocol):
    """A view of a task; shared/place.py says what the last four mean."""

    id: str
    status: State
    position: int
    eta_ms: int | None
    waits_for: Why | None
    due_ms: int


async def tell_places(outlooks: Outlooks, views: Sequence[Placed]) -> None:
    """Fill in the places of those that are pending. Raises: BusUnavailable, CommandRefused."""
    waiting = [view for view in views if view.status is State.PENDING]
    found = await asyncio.gather(*(outlooks.of(view.id) for view in waiting))
    for view, outlook in zip(waiting, found, strict=True):
        if outlook is not None:
            view.position, view.waits_for, view.due_ms = outlook.position, outlook.why, outlook.due_ms
            view.eta_ms = outlook.eta_ms if outlook.eta_ms >= 0 else None
