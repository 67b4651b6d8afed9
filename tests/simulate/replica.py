"""A replica of the scheduler: it reads `in`, admits and dispatches; and once a second it keeps house."""

from typing import TYPE_CHECKING

from services.scheduler.app import ARRIVALS_PER_READ
from services.scheduler.housekeeping import INTERVAL_S, PAGES
from services.scheduler.scripts import Arrival
from shared.bus.script import MAX_ITEMS

if TYPE_CHECKING:
    from tests.simulate.world import World

HOP_S = (0.0004, 0.002)
"""Between two calls of one service: a round trip, and its own work."""


class Replica:
    def __init__(self, world: "World", number: int) -> None:
        self._world, self._name = world, f"s{number}"
        self._arrivals: list[Arrival] = []
        self._seen = 0

    def begin(self) -> None:
        self._world.agenda.after(self._world.dice.uniform(0, INTERVAL_S), self._tidy)

    def wake(self) -> None:
        """Its blocking read returns."""
        self._soon(self._read)

    async def _read(self) -> None:
        self._seen = self._world.news
        self._arrivals = await self._world.calls.arrivals(self._name, ARRIVALS_PER_READ)
        if self._arrivals:
            self._soon(self._admit)
        else:
            self._world.rests(self)

    async def _admit(self) -> None:
        page, self._arrivals = self._arrivals[:MAX_ITEMS], self._arrivals[MAX_ITEMS:]
        await self._world.calls.admit(page)
        self._soon(self._admit if self._arrivals else self._dispatch)

    async def _dispatch(self) -> None:
        if await self._hand_out():
            self._soon(self._dispatch)
        elif self._seen != self._world.news:
            self._soon(self._read)
        else:
            self._world.rests(self)

    async def _hand_out(self) -> bool:
        """Whether there may be more."""
        done = await self._world.calls.dispatch()
        if done.handed_out:
            self._world.deliver()
        return done.handed_out >= MAX_ITEMS

    async def _tidy(self) -> None:
        world, calls = self._world, self._world.calls
        world.agenda.after(INTERVAL_S, self._tidy)
        for _ in range(PAGES):
            reaped = await calls.reap()
            world.recording.count("taken back", reaped.running + reaped.unstarted)
            if reaped.quarantined:
                told = world.recording.told
                await world.look_at([n for n, task in enumerate(told) if task.lost and not task.state.terminal])
            if max(reaped.running, reaped.unstarted) < MAX_ITEMS:
                break
        for _ in range(PAGES):
            passed = await calls.due()
            if passed.told:
                world.deliver()
            if max(passed.expired, passed.cancelled, passed.told, passed.back) < MAX_ITEMS:
                break
        await world.look_at_overdue()
        while await self._hand_out():
            pass
        world.wake()

    def _soon(self, step) -> None:  # type: ignore[no-untyped-def]
        self._world.agenda.after(self._world.dice.uniform(*HOP_S), step)
