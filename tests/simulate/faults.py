"""Workers that die or fall silent, by a seed."""

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from tests.simulate.agenda import Happening
    from tests.simulate.world import World


class Fault(Struct, frozen=True):
    at_s: float
    worker: int
    """Its place; whoever stands there then."""
    kind: Literal["dies", "silent"]
    for_s: float
    """Until another one takes its place, or until it is heard of again."""

    def happening(self, world: "World") -> "Happening":
        async def happen() -> None:
            worker = next((w for w in world.workers if w.place == self.worker), None)
            if worker is None:
                return
            world.recording.count(self.kind)
            if self.kind == "dies":
                worker.die()
                world.agenda.after(self.for_s, rejoin)
            else:
                worker.fall_silent()
                world.agenda.after(self.for_s, hear)

        async def rejoin() -> None:
            generation = world.recording.counts["dies"]
            world.join(self.worker, generation)

        async def hear() -> None:
            for worker in world.workers:
                if worker.place == self.worker:
                    worker.return_()

        return happen


def faults(
    dice: random.Random, workers: int, every_s: float, begin_s: float, end_s: float, *, away_s: float = 20.0
) -> Iterator[Fault]:
    """On average one each `every_s`: two deaths, then a silence, which may be shorter than the lease."""
    at_s, number = begin_s + dice.expovariate(1 / every_s), 0
    while at_s < end_s:
        number += 1
        kind: Literal["dies", "silent"] = "silent" if number % 3 == 0 else "dies"
        yield Fault(at_s, dice.randrange(workers), kind, away_s if kind == "dies" else dice.uniform(2.0, away_s))
        at_s += dice.expovariate(1 / every_s)
