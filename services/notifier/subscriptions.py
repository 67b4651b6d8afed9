"""What a subscription of a client covers: one task, or all tasks of a session as they come."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from services.notifier import metrics
from services.notifier.feed import Feed, Push
from services.notifier.frames import Err, Sub
from services.notifier.line import Line
from shared.bus.client import Bus
from shared.bus.cursor import Cursor, parse_cursor
from shared.bus.tail import Tail, Tails
from shared.errors import BusError, InvalidRequest, InvalidTaskId
from shared.ids import place_of
from shared.lifecycle import State
from shared.messages import Event, Pending
from shared.submit import INDEX_LENGTH

log = logging.getLogger(__name__)

SESSION_TASKS = INDEX_LENGTH
"""Newest tasks of a session that a new subscription looks at: all that the index remembers, so a client that was away
misses none of them."""
REMEMBERED = 2 * SESSION_TASKS
"""Ended tasks that a subscription remembers, so that a late event starts nothing anew."""
SEEN = "end"
"""Instead of a cursor: the client has seen the end of the task."""

OnEnd = Callable[[Feed], None]
"""Called by a feed when nothing more will come."""


class Followed(Protocol):
    """Anything a client has subscribed to."""

    def open(self) -> None: ...

    def close(self) -> None: ...


def follow_task(bus: Bus, tails: Tails, line: Line, sub: Sub, push: Push, *, on_end: OnEnd = lambda feed: None) -> Feed:
    """Raises: InvalidTaskId, InvalidRequest."""
    if not isinstance(sub.after, str):
        raise InvalidRequest("`after` of a task is its cursor, a string.", param="after")
    tail = tails.of(place_of(sub.task))
    if tail is None:
        raise InvalidTaskId(sub.task)
    cursor = parse_cursor(sub.after)
    return Feed(bus, tail, line, sub.task, push, id=sub.id, cursor=cursor, form=sub.form, on_end=on_end)


class SessionFeed:
    """All shards' tasks of a session. It listens first, then looks up what is there already: a task is followed once."""

    def __init__(self, bus: Bus, tails: Tails, line: Line, sub: Sub, push: Push) -> None:
        """Raises: InvalidRequest, InvalidTaskId."""
        given = sub.after if isinstance(sub.after, dict) else {}
        self._places = {task: place_of(task) for task in given}
        self._cursors = {task: parse_cursor(cursor) for task, cursor in given.items() if cursor != SEEN}
        if isinstance(sub.after, str) and sub.after not in ("", "0", "now"):
            raise InvalidRequest("`after` of a session is `0`, `now`, or an object of cursors by task.", param="after")
        self._skip_ended = sub.after == "now"
        self._bus, self._tails, self._line, self._sub, self._push = bus, tails, line, sub, push
        self._feeds: dict[str, Feed] = {}
        self._done = dict.fromkeys(task for task, cursor in given.items() if cursor == SEEN)
        self._looking: asyncio.Task[None] | None = None
        self._missed = True
        """What has come since the last look at the lists may not have been told here."""

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
        self._follow(task_id, event)

    def on_gap(self) -> None:
        self._missed = True  # a look that is under way may have passed the place
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_up())

    def _follow(self, task_id: str, event: Event | None = None) -> None:
        """`event`: by which this replica learned of the task; Pending is always the first."""
        if task_id in self._feeds or task_id in self._done:
            return
        tail = self._tails.of(place_of(task_id))
        if tail is None:
            return
        self._feeds[task_id] = feed = Feed(
            self._bus, tail, self._line, task_id, self._push,
            id=self._sub.id, cursor=self._cursors.get(task_id, Cursor()), form=self._sub.form,
            named=True, on_end=self._on_end,
        )  # fmt: skip
        if isinstance(event, Pending) and task_id not in self._cursors:
            feed.open_new(event)
        else:
            feed.open()

    def _on_end(self, feed: Feed) -> None:
        self._forget(feed.task_id)
        if self._feeds.pop(feed.task_id, None) is not None:
            asyncio.get_running_loop().call_soon(feed.close)

    def _forget(self, task_id: str) -> None:
        """Its end was told, or is not wanted: an event that still comes of it starts nothing anew."""
        self._done[task_id] = None
        if len(self._done) > REMEMBERED:
            del self._done[next(iter(self._done))]

    async def _look_up(self) -> None:
        while self._missed:
            self._missed = False
            try:
                for tail in self._tails:
                    for task_id, state in await self._known(tail):
                        if self._skip_ended and state.terminal and task_id not in self._feeds:
                            self._forget(task_id)
                        self._follow(task_id)
            except BusError as error:
                log.warning("cannot look up the session %s: %s", self._sub.session, error)
                self._missed = True
                await asyncio.sleep(0.5)
            else:
                self._skip_ended = False  # what ends from here on is told, also after a gap

    async def _known(self, tail: Tail) -> list[tuple[str, State]]:
        """The session's tasks in a shard that still exist: those the client named, then the newest ones, oldest first."""
        call = self._bus.bulk.send
        found = await call("ZREVRANGE", tail.keys.session(self._sub.session), 0, SESSION_TASKS - 1)
        named = [task_id for task_id in self._cursors if self._tails.of(self._places[task_id]) is tail]
        ids = list(dict.fromkeys([*named, *(task_id.decode() for task_id in reversed(found))]))
        states = await asyncio.gather(*(call("HGET", tail.keys.task(task_id), "state") for task_id in ids))
        return [(id, State(state.decode())) for id, state in zip(ids, states, strict=True) if state is not None]


def refusal(sub: Sub, error: InvalidRequest | InvalidTaskId) -> Err:
    code = "not_found" if isinstance(error, InvalidTaskId) else "bad_request"
    return Err(id=sub.id, code=code, msg=str(error))
