"""A worker with the model of an engine: it beats, takes what it is handed, and finishes it when the engine has made it."""

import math
from typing import TYPE_CHECKING

from msgspec import Struct

from services.inference.capacity import ceilings
from services.inference.heartbeat import BEATS
from services.inference.scripts import Hand, Owner, Running, Slots
from shared.lifecycle import State
from tests.simulate.calls import seconds
from tests.simulate.engine import Engine
from tests.simulate.recording import Stint

if TYPE_CHECKING:
    from tests.simulate.world import World

HOP_S = (0.0004, 0.002)
TICK_S = 0.01
"""An engine's answers come at the end of its steps, which last about so long: what ends within one is told together."""


class Held(Struct):
    hand: Hand
    attempt: int
    stint: Stint


class SimulatedWorker:
    def __init__(self, world: "World", place: int, generation: int) -> None:
        setup = world.setup
        self._world, self.place, self._generation = world, place, generation
        name = f"w{place}.{generation}" if generation else f"w{place}"
        self.owner = Owner(world.calls.shard, name, f"nonce-{name}", setup.config.limits)
        self._engine = Engine(setup.speed)
        self._held: dict[str, Held] = {}
        self._made: list[str] = []
        """Ended in the engine, and not told yet."""
        self._gone = self._silent = self._looking = False
        self._timer = 0
        self._beat_s = setup.config.limits.lease_s / BEATS

    @property
    def slots(self) -> Slots:
        lanes = self._world.setup.config.policy.lanes
        return ceilings(self._world.setup.slots, {lane: rule.slots for lane, rule in lanes.items()})

    def begin(self) -> None:
        self._world.agenda.after(self._world.dice.uniform(*HOP_S), self._beat)

    # -- faults

    def die(self) -> None:
        """With all that it holds."""
        self._gone = True
        for id in list(self._held):
            self._break_off(id)
        self._world.leave(self)

    def fall_silent(self) -> None:
        """Cut off from Redis: the engine goes on, nobody hears of it."""
        self._silent = True

    def return_(self) -> None:
        """Late, and it does not know."""
        self._silent = False
        self.look_soon()
        self._time()

    # -- what it does

    async def _beat(self) -> None:
        if self._gone:
            return
        world = self._world
        world.agenda.after(self._beat_s, self._beat)
        if self._silent:
            return
        holding = [(held.hand.id, held.hand.epoch) for held in self._held.values()]
        stopped = await world.calls.beat(self.owner, self.slots, holding)
        await self._part({id: why for id, why in stopped.items() if id in self._held})
        world.wake()
        self.look_soon()

    def look_soon(self) -> None:
        if not self._looking:
            self._looking = True
            self._world.agenda.after(self._world.dice.uniform(*HOP_S), self._look)

    async def _look(self) -> None:
        self._looking = False
        if self._gone or self._silent:
            return
        hands, stops = await self._world.calls.hands(self.owner)
        await self._part({id: why for id, why in stops.items() if id in self._held})
        if hands:
            for hand, verdict in zip(hands, await self._world.calls.start(self.owner, hands), strict=True):
                if isinstance(verdict, Running):
                    self._run(hand, verdict)
                else:
                    self._world.recording.count(f"start: {verdict}")
            self._time()

    def _run(self, hand: Hand, running: Running) -> None:
        world, number = self._world, self._world.numbers[hand.id]
        task, now_s = world.recording.told[number], world.agenda.now_s
        if task.started_s is None:
            task.started_s, task.eta_s = now_s, seconds(running.eta_ms)
        stint = Stint(number, self.owner.worker, now_s)
        world.recording.stints.append(stint)
        self._held[hand.id] = Held(hand, running.attempt, stint)
        self._engine.begin(hand.id, world.setup.speed.steps(task.row.tokens_in, task.row.tokens_out), now_s)

    def _time(self) -> None:
        """Set the alarm for the engine's next answer; an older alarm is passed over."""
        self._timer += 1
        timer, at_s = self._timer, self._engine.next_end_s()
        if self._made:
            at_s = self._world.agenda.now_s
        if at_s == math.inf:
            return

        async def ring() -> None:
            if timer == self._timer and not self._gone:
                await self._finish()

        self._world.agenda.at(math.ceil(at_s / TICK_S) * TICK_S, ring)

    async def _finish(self) -> None:
        world, now_s = self._world, self._world.agenda.now_s
        for id in self._engine.done(now_s):
            held = self._held[id]
            held.stint.ended_s, held.stint.tokens = now_s, world.setup.rows[held.stint.task].tokens
            self._made.append(id)
        if not self._silent and self._made:
            made, self._made = [self._held.pop(id) for id in self._made], []
            endings = [(held.hand, held.attempt, held.stint.tokens) for held in made]
            for held, verdict in zip(made, await world.calls.finish(self.owner, endings), strict=True):
                if verdict == "ok":
                    held.stint.counted = True
                    world.ended(held.stint.task, State.COMPLETED)
                else:
                    world.recording.count(f"finish: {verdict}")
            world.wake()
        if not self._silent:
            self._time()

    async def _part(self, stopped: dict[str, str]) -> None:
        """Give up what must be stopped."""
        if not stopped:
            return
        world = self._world
        parted = []
        for id, why in stopped.items():
            held = self._break_off(id)
            parted.append((held.hand, held.stint.tokens, why))
        for (hand, _, why), verdict in zip(parted, await world.calls.release(self.owner, parted), strict=True):
            world.recording.count(f"stopped, {why}: {verdict}")
            await world.look_at([world.numbers[hand.id]])
        self._time()
        world.wake()

    def _break_off(self, id: str) -> Held:
        world, held = self._world, self._held.pop(id)
        row = world.setup.rows[held.stint.task]
        if id in self._made:
            self._made.remove(id)
        else:
            steps = self._engine.stop(id, world.agenda.now_s)
            ahead = world.setup.speed.steps(row.tokens_in, 0)
            prompt = min(row.tokens_in, steps * world.setup.speed.prompt_tokens)
            held.stint.ended_s, held.stint.tokens = world.agenda.now_s, prompt + max(0, steps - ahead)
        if self._gone:
            world.recording.told[held.stint.task].lost += 1
        return held
