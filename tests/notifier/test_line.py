"""When a place in line is worth telling, and that what has been overtaken is not told."""

import asyncio

import pytest

from services.notifier.line import Line, has_changed
from shared.bus.client import Bus
from shared.config import Limits
from shared.errors import BusUnavailable
from shared.place import Outlook, Outlooks, Why
from tests.support import tasks

PLACE = Outlook(10, 60_000, Why.SLOTS, 0)


@pytest.mark.parametrize(
    ("before", "now", "passed_s", "changed"),
    [
        (PLACE, PLACE, 2, False),
        (PLACE, Outlook(10, 30_000, Why.SLOTS, 0), 30, False),
        (PLACE, Outlook(10, 60_000, Why.SLOTS, 0), 30, True),
        (PLACE, Outlook(10, 30_000, Why.SLOTS, 0), 2, True),
        (PLACE, Outlook(9, 58_000, Why.SLOTS, 0), 2, True),
        (Outlook(500, 60_000, Why.SLOTS, 0), Outlook(499, 58_000, Why.SLOTS, 0), 2, False),
        (Outlook(500, 60_000, Why.SLOTS, 0), Outlook(450, 58_000, Why.SLOTS, 0), 2, True),
        (PLACE, Outlook(10, -1, Why.SLOTS, 0), 2, True),
        (PLACE, Outlook(10, 60_000, Why.TENANT_RUNNING, 0), 2, True),
        (Outlook(0, 500, Why.LATER, 7), Outlook(0, 500, Why.LATER, 8), 0, True),
        (Outlook(1, 1500, Why.SLOTS, 0), Outlook(1, 500, Why.SLOTS, 0), 10, False),
    ],
)
def test_a_client_that_counts_down_is_told_what_it_cannot_know(
    before: Outlook, now: Outlook, passed_s: float, changed: bool
) -> None:
    assert has_changed(before, now, passed_s * 1000) is changed


class Follower:
    def __init__(self, task_id: str, *, waits: bool = True) -> None:
        self.task_id, self.waits, self.moves = task_id, waits, 0
        self.told: list[Outlook | None] = []

    def on_outlook(self, outlook: Outlook | None) -> None:
        self.waits = outlook is not None
        self.told.append(outlook)


class Slow(Outlooks):
    """Answers when it is let."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer: asyncio.Future[Outlook] = asyncio.get_running_loop().create_future()

    async def of(self, task_id: str) -> Outlook | None:
        self.asked.set()
        return await self.answer


async def test_an_answer_that_an_event_has_overtaken_is_void() -> None:
    outlooks = Slow()
    line, follower = Line(outlooks), Follower("t")
    line.join(follower)
    await outlooks.asked.wait()
    follower.moves += 1
    outlooks.answer.set_result(PLACE)
    await line.refresh()
    assert follower.told == [PLACE], "the answer to the second question, and not that to the first"


async def test_whoever_has_left_is_told_nothing() -> None:
    outlooks = Slow()
    line, follower = Line(outlooks), Follower("t")
    line.join(follower)
    await outlooks.asked.wait()
    line.leave(follower)
    outlooks.answer.set_result(PLACE)
    await line.refresh()
    assert follower.told == []


async def test_what_redis_could_not_tell_is_told_later() -> None:
    outlooks = Slow()
    line, follower = Line(outlooks), Follower("t")
    outlooks.answer.set_exception(BusUnavailable("away"))
    line.join(follower)
    with pytest.raises(BusUnavailable):
        await line.refresh()
    outlooks.answer = asyncio.get_running_loop().create_future()
    outlooks.answer.set_result(PLACE)
    await line.refresh()
    assert follower.told == [PLACE]


async def test_a_pass_is_bounded_and_everybody_has_a_turn(bus: Bus) -> None:
    line = Line(Outlooks(bus, Limits()), most=2)
    followers = [Follower(await tasks.admitted(bus), waits=False) for _ in range(5)]
    for follower in followers:
        line.join(follower)
        follower.waits = True
    counts = []
    for _ in range(3):
        await line.refresh()
        counts.append(sum(len(follower.told) for follower in followers))
    assert counts == [2, 4, 5]
    assert sorted(told.position for follower in followers for told in follower.told if told) == [1, 2, 3, 4, 5]
