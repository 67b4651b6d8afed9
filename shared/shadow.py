"""Shadow traffic: copies of accepted requests, run by another model for comparison. Nobody gets their answers.

A copy never delays or fails what it was made from: it is submitted on its own, at most once, and let go of when that does not
work. It runs in the lane `batch` and is charged to the tenant that the alias names for it.
"""

import asyncio
import logging
from typing import Protocol

import msgspec
from prometheus_client import Counter

from shared.errors import HeadraceError
from shared.request import Request

log = logging.getLogger(__name__)

MOST = 256
"""Copies whose submission is under way: a pool that answers slowly must not fill the memory of a door."""

SHADOWS = Counter(
    "hr_shadows_total", "Copies for shadow pools: submitted, dropped (too many at once), refused", ("what",)
)


class Submits(Protocol):
    """What is needed of shared/submit.py, which casts the shadows itself."""

    def new_id(self, request: Request) -> str: ...

    async def submit(self, request: Request, task_id: str) -> object: ...


class Shadows:
    def __init__(self, submitter: Submits) -> None:
        self._submitter = submitter
        self._under_way: set[asyncio.Task[None]] = set()

    def cast(self, request: Request, primary_id: str) -> None:
        """Call it once a task, when it was made. The copy's id says nothing to who knows the first one's."""
        if request.shadow is None:
            return
        if len(self._under_way) >= MOST:
            SHADOWS.labels("dropped").inc()
            return
        task = msgspec.structs.replace(request.shadow.task, shadow_of=primary_id)
        copy = msgspec.structs.replace(request.shadow, task=task)
        submission = asyncio.create_task(self._submit(copy))
        self._under_way.add(submission)
        submission.add_done_callback(self._under_way.discard)

    async def settle(self) -> None:
        """Return when no submission is under way."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def _submit(self, copy: Request) -> None:
        try:
            await self._submitter.submit(copy, self._submitter.new_id(copy))
        except HeadraceError as error:
            SHADOWS.labels("refused").inc()
            log.debug("no shadow of %s: %s", copy.task.shadow_of, error)
        else:
            SHADOWS.labels("submitted").inc()
