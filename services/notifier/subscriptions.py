"""What a subscription of a client covers: one task, or all tasks of a session as they come."""

import asyncio
import logging
from typing import Protocol

from services.notifier import metrics
from services.notifier.feed import Feed, Push
from services.notifier.frames import Err, Sub
from shared.bus.client import Bus
from shared.bus.subscription import Cursor, parse_cursor
from shared.bus.tail import Tail, Tails
from shared.errors import BusError, InvalidRequest, InvalidTaskId
from shared.ids import place_of
from shared.lifecycle import State
from shared.messages import Event

log = logging.getLogger(__name__)

SESSION_TASKS = 100
"""Newest tasks of a session that a new subscription looks at; those that have ended are left out unless a cursor is given."""


class Followed(Protocol):
    """Anything a client has subscribed to."""

    def open(self) -> None: ...

    def close(self) -> None: ...


def follow_task(bus: Bus, tails: Tails, sub: Sub, push: Push, *, on_end: "OnEnd") -> Feed:
    """Raises: InvalidTaskId, InvalidRequest."""
    if not isinstance(sub.after, str):
        raise InvalidRequest("`after` of a task is its cursor, a string.", param="after")
    tail = tails.of(place_of(sub.task))
    if tail is None:
        raise InvalidTaskId(sub.task)
    cursor = parse_cursor(sub.after)
    return Feed(bus, tail, sub.task, push, id=sub.id, cursor=cursor, form=sub.form, on_end=lambda _: on_end())


class OnEnd(Protocol):
    def __call__(self) -> None: ...


class SessionFeed:
    """All shards' tasks of a session. It listens first, then looks up what is there already: a task is followed once."""

    def __init__(self, bus: Bus, tails: Tails, sub: Sub, push: Push) -> None:
        """Raises: InvalidRequest."""
        if not isinstance(sub.after, dict) and sub.after not in ("", "0"):
            raise InvalidRequest("`after` of a session is an object of cursors by task id.", param="after")
        given = sub.after if isinstance(sub.after, dict) else {}
        self._cursors = {task: parse_cursor(cursor) for task, cursor in given.items()}
        self._bus, self._tails, self._sub, self._push = bus, tails, sub, push
        self._feeds: dict[str, Feed] = {}
        self._ended: set[str] = set()
        self._looking: asyncio.Task[None] | None = None

    def open(self) -> None:
        metrics.SUBSCRIPTIONS.inc()
        for tail in self._tails:
            tail.listen(self, session=self._sub.session)
        self._looking = asyncio.create_task(self._look_up())

    def close(self) -> None:
        metrics.SUBSCRIPTIONS.dec()
        for tail in self._tails:
            tail.unlisten(self, session=self._sub.session)
        if self._looking is not None:
            self._looking.cancel()
        for feed in self._feeds.values():
            feed.close()
        self._feeds.clear()

    def on_event(self, entry: bytes, task_id: str, event: Event) -> None:
        if task_id not in self._feeds and task_id not in self._ended:
            self._follow(task_id)

    def on_gap(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_up())

    def _follow(self, task_id: str) -> None:
        tail = self._tails.of(place_of(task_id))
        if tail is None or task_id in self._feeds:
            return
        cursor = self._cursors.get(task_id, Cursor())
        self._feeds[task_id] = feed = Feed(
            self._bus, tail, task_id, self._push,
            id=self._sub.id, cursor=cursor, form=self._sub.form, named=True, on_end=self._on_end,
        )  # fmt: skip
        feed.open()

    def _on_end(self, feed: Feed) -> None:
        self._ended.add(feed.task_id)
        if self._feeds.pop(feed.task_id, None) is not None:
            asyncio.get_running_loop().call_soon(feed.close)

    async def _look_up(self) -> None:
        while True:
            try:
                for tail in self._tails:
                    for task_id in await self._open_tasks(tail):
                        if task_id not in self._ended:
                            self._follow(task_id)
                return
            except BusError as error:
                log.warning("cannot look up the session %s: %s", self._sub.session, error)
                await asyncio.sleep(0.5)

    async def _open_tasks(self, tail: Tail) -> list[str]:
        """Oldest first: those not ended, and those that the client has a cursor of."""
        call = self._bus.bulk.send
        found = await call("ZREVRANGE", tail.keys.session(self._sub.session), 0, SESSION_TASKS - 1)
        ids = [task_id.decode() for task_id in reversed(found)]
        states = await asyncio.gather(*(call("HGET", tail.keys.task(task_id), "state") for task_id in ids))
        return [
            task_id
            for task_id, state in zip(ids, states, strict=True)
            if state is not None and (task_id in self._cursors or not State(state.decode()).terminal)
        ]


def refusal(sub: Sub, error: InvalidRequest | InvalidTaskId) -> Err:
    code = "not_found" if isinstance(error, InvalidTaskId) else "bad_request"
    return Err(id=sub.id, code=code, msg=str(error))
