"""What a subscription to a session covers, whatever is missed on the way."""

import asyncio
from typing import Any

import pytest

from services.notifier.frames import Err, Outbound, Sub
from services.notifier.line import Line
from services.notifier.subscriptions import SessionFeed
from shared.bus import subscription
from shared.bus.client import Bus
from shared.bus.tail import Tail, Tails
from shared.lifecycle import State
from shared.place import Outlooks
from tests.support import tasks
from tests.support.tails import tailing
from tests.support.waiting import wait_until


class Slow(SessionFeed):
    """Its first look at a list is answered when it is let."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.looked, self.go_on = asyncio.Event(), asyncio.Event()

    async def _known(self, tail: Tail) -> list[tuple[str, State]]:
        found = await super()._known(tail)
        self.looked.set()
        await self.go_on.wait()
        return found


async def test_a_task_that_was_missed_while_the_session_was_looked_up_is_told(bus: Bus) -> None:
    told: list[Outbound] = []
    async with tailing(bus) as tail:
        line, sub = Line(Outlooks(bus, tasks.LIMITS)), Sub(id=1, session="s")
        feed = Slow(bus, Tails([tail]), line, sub, told.append)
        feed.open()
        await feed.looked.wait()
        tail.unlisten(feed, session="s")
        task = await tasks.submitted(bus, session="s")
        tail.listen(feed, session="s")
        feed.on_gap()
        feed.go_on.set()
        await wait_until(lambda: [message for message in told if getattr(message, "task", "") == task], "it is told")
        feed.close()


async def test_a_task_that_redis_loses_after_its_first_event_is_told_to_be_gone(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "SILENT_S", 0.05)
    told: list[Outbound] = []
    async with tailing(bus) as tail:
        line, sub = Line(Outlooks(bus, tasks.LIMITS)), Sub(id=1, session="s")
        feed = SessionFeed(bus, Tails([tail]), line, sub, told.append)
        feed.open()
        assert feed._looking is not None
        await feed._looking  # so that the event alone tells of the task
        task = await tasks.submitted(bus, session="s")
        await wait_until(lambda: told, "its start is told")
        await bus.commands.call("DEL", tasks.SHARD.task(task))
        await wait_until(lambda: isinstance(told[-1], Err), "its loss is told")
        feed.close()
