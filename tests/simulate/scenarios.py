"""The scenarios that ship: what comes, who may have how much, what breaks, and what must be true in the end."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec import Struct

from shared.config import Config, Limits, Pool
from shared.lifecycle import Lane
from shared.policy import EVERYBODY, Live, Policy, Tenant
from tests.simulate import promises
from tests.simulate.engine import Speed
from tests.simulate.faults import Fault, faults
from tests.simulate.generate import (
    Size,
    at_once,
    bursts,
    changing,
    diurnal,
    fixed,
    lognormal,
    pareto,
    rows,
    steady,
    zipf,
)
from tests.simulate.measure import Which
from tests.simulate.recording import Recording
from tests.simulate.trace import Row, ordered
from tests.simulate.world import POOL, Setup

WEIGHTS = dict(zip(promises.TENANTS, (3.0, 2.0, 1.0), strict=True))
MINUTE_S = 60.0
WORKERS, SLOTS = 4, 16
ALIKE = fixed(200, 100, 200)


class Scenario(Struct, frozen=True, kw_only=True):
    name: str
    about: str
    minutes: float
    """Of arrivals, by default."""
    make: Callable[[random.Random, float], Setup]
    """Given the time for which tasks arrive (s); seed and replicas are put in later."""
    check: Callable[[Recording], list[promises.Check]]
    tenants: tuple[str, ...] = ()
    """Whose shares are measured and drawn: they are of one lane."""
    refuses: bool = False
    """Refusals and predictions are drawn."""
    grouping: Callable[[Recording], dict[str, Which]] | None = None
    """Of tasks, for waits and slots; None: by tenant where they are named, else by lane."""

    def groups(self, recording: Recording) -> dict[str, Which]:
        if self.grouping is not None:
            return self.grouping(recording)
        if self.tenants:
            return {tenant: _of_tenant(tenant) for tenant in self.tenants}
        lanes = {task.row.lane for task in recording.told}
        return {lane: _of_lane(lane) for lane in Lane if lane in lanes}


def _of_tenant(tenant: str) -> Which:
    return lambda task: task.row.tenant == tenant


def _of_lane(lane: Lane) -> Which:
    return lambda task: task.row.lane is lane


def setup(arrivals: Iterable[Row], tenants: dict[str, Tenant] | None = None, **named: object) -> Setup:
    limits = named.pop("limits", Limits())
    policy = Policy(tenants=tenants if tenants is not None else {name: Tenant(weight=w) for name, w in WEIGHTS.items()})
    config = Config(pools={POOL: Pool(model="simulated", engine="echo")}, limits=limits, live=Live(policy))  # type: ignore[arg-type]
    return Setup(rows=ordered(arrivals), config=config, **named)  # type: ignore[arg-type]


# -- weights


def _loaded(
    dice: random.Random, sizes: dict[str, Size], load: float, begins_s: dict[str, float], end_s: float
) -> Iterator[Row]:
    """Tenants of WEIGHTS who each ask for `load` times the share of the slots that they may have."""
    for tenant, weight in WEIGHTS.items():
        rate = capacity(sizes[tenant]) * load * weight / sum(WEIGHTS.values())
        arrivals = steady(dice, rate, begins_s.get(tenant, 0.0), end_s)
        yield from rows(dice, arrivals, tenant, Lane.NORMAL, sizes[tenant])


def capacity(size: Size, workers: int = WORKERS, slots: int = SLOTS) -> float:
    """Tasks a second of such sizes that all slots together can do, by a sample."""
    speed, dice = Speed(), random.Random("sizes")
    steps = [speed.steps(*size(dice)[:2]) for _ in range(4000)]
    return workers * slots / (sum(steps) / len(steps) * speed.seconds(slots))


def _equal(dice: random.Random, arriving_s: float) -> Setup:
    return setup(_loaded(dice, dict.fromkeys(WEIGHTS, ALIKE), 1.5, {}, arriving_s))


def _unequal(dice: random.Random, arriving_s: float) -> Setup:
    sizes = {
        "gold": fixed(2000, 800, 2000),
        "silver": lognormal(150, 60, 1.0),
        "bronze": pareto(30, 20, 1.3, most=1000),
    }
    return setup(_loaded(dice, sizes, 1.6, {}, arriving_s))


# -- who comes late


def _late(dice: random.Random, arriving_s: float) -> Setup:
    return setup(_loaded(dice, dict.fromkeys(WEIGHTS, ALIKE), 2.4, {"gold": arriving_s / 3}, arriving_s))


def _idle(dice: random.Random, arriving_s: float) -> Setup:
    """Gold asks for little at first, then nothing, then for as much as it can get."""
    little = steady(dice, capacity(ALIKE) * 0.03, 0, arriving_s / 4)
    again = _loaded(dice, dict.fromkeys(WEIGHTS, ALIKE), 2.4, {"gold": arriving_s / 2}, arriving_s)
    return setup([*rows(dice, little, "gold", Lane.NORMAL, ALIKE), *again])


# -- lanes


def _overtaking(dice: random.Random, arriving_s: float) -> Setup:
    """A batch of thousands at once; people come and go, in bursts of half of what the slots can do."""
    chat, item = lognormal(150, 100, 0.7, most=500), lognormal(300, 150, 0.7, most=1000)
    most = capacity(chat) / 2
    people = changing(dice, bursts(most / 20, most, 60.0, 15.0), most, 5.0, arriving_s)
    batch = rows(dice, at_once(int(arriving_s * capacity(item))), "archive", Lane.BATCH, item)
    chats = rows(dice, people, "people", Lane.INTERACTIVE, chat)
    return setup([*batch, *chats], {"people": Tenant(), "archive": Tenant()})


def _alternating(dice: random.Random, arriving_s: float) -> Setup:
    """Bursts of normal tasks whose length nobody can tell, each of them gone before the next; people come now and then."""
    burst_s, guess = 12.0, lognormal(100, 55, 1.2, most=4000)
    jobs = (at_s for begin_s in range(int(arriving_s / burst_s)) for at_s in at_once(300, 5 + begin_s * burst_s))
    people = steady(dice, 2.0, 3.0, arriving_s)
    chats = rows(dice, people, "people", Lane.INTERACTIVE, lognormal(150, 100, 0.7, most=500))
    return setup([*rows(dice, jobs, "jobs", Lane.NORMAL, guess), *chats], {"people": Tenant(), "jobs": Tenant()})


# -- many tenants


def _many(dice: random.Random, arriving_s: float) -> Setup:
    """More than the slots can do in the first half, then less; most of it from a few of ten thousand tenants."""
    size = pareto(40, 40, 1.3, most=2000)
    rate = capacity(size, 8)
    arrivals = changing(dice, lambda at_s: rate * (1.3 if at_s < arriving_s / 2 else 0.6), rate * 1.3, 0, arriving_s)
    tasks = rows(dice, arrivals, zipf(10_000), Lane.NORMAL, size)
    return setup(tasks, {EVERYBODY: Tenant()}, workers=8)


# -- faults and deadlines


def _dying(dice: random.Random, arriving_s: float) -> Setup:
    tasks = _loaded(dice, dict.fromkeys(WEIGHTS, lognormal(150, 100, 0.8)), 2.4, {}, arriving_s)
    broken: list[Fault] = list(faults(dice, 8, 15.0, 10.0, arriving_s))
    return setup(tasks, workers=8, faults=broken, limits=Limits(lease_s=10, crashes=10))


def _overload(dice: random.Random, arriving_s: float) -> Setup:
    """Bursts of twice what the slots can do, on days that are full; everybody wants an answer within 20 s."""
    size = lognormal(150, 100, 0.8, most=1000)
    rate = capacity(size)
    day = diurnal(rate * 0.8, 0.4, arriving_s / 2)
    burst = bursts(0.0, rate * 1.2, 90.0, 20.0)
    people = changing(dice, lambda at_s: day(at_s) + burst(at_s), rate * 2.4, 0, arriving_s)
    tasks = rows(dice, people, zipf(200), Lane.NORMAL, size, expires_in_s=20.0)
    return setup(tasks, {EVERYBODY: Tenant()})


ALL = [
    Scenario(
        name="weights",
        about="three tenants of weights 3:2:1, all tasks alike",
        minutes=3,
        make=_equal,
        check=promises.weights,
        tenants=tuple(WEIGHTS),
    ),
    Scenario(
        name="sizes",
        about="weights 3:2:1; tasks of one tenant are 15 times as long as those of another",
        minutes=4,
        make=_unequal,
        check=promises.weights,
        tenants=tuple(WEIGHTS),
    ),
    Scenario(
        name="late",
        about="a tenant of weight 3 comes when two others have queued for long",
        minutes=3,
        make=_late,
        check=promises.coming_back,
        tenants=tuple(WEIGHTS),
    ),
    Scenario(
        name="idle",
        about="a tenant of weight 3 asks for little, is idle, and comes back",
        minutes=3,
        make=_idle,
        check=promises.coming_back,
        tenants=tuple(WEIGHTS),
    ),
    Scenario(
        name="overtaking",
        about="bursts of interactive tasks over a batch of thousands",
        minutes=5,
        make=_overtaking,
        check=promises.overtaking,
    ),
    Scenario(
        name="alternating",
        about="bursts of normal tasks of unknown length, and interactive ones now and then",
        minutes=5,
        make=_alternating,
        check=promises.overtaking,
    ),
    Scenario(
        name="tenants",
        about="10,000 tenants by Zipf's law, heavy tails, overload for half of the time",
        minutes=6,
        make=_many,
        check=promises.starving,
        grouping=promises.by_demand,
    ),
    Scenario(
        name="dying",
        about="eight workers, one of which dies or falls silent every 15 s",
        minutes=4,
        make=_dying,
        check=promises.dying,
        tenants=tuple(WEIGHTS),
    ),
    Scenario(
        name="overload",
        about="bursts of twice the capacity; every task has a deadline of 20 s",
        minutes=10,
        make=_overload,
        check=promises.overload,
        refuses=True,
    ),
]
SCENARIOS = {scenario.name: scenario for scenario in ALL}


def given(
    name: str, trace: Sequence[Row], weights: dict[str, float], workers: int | None, slots: int | None
) -> Scenario:
    """A trace that somebody brings: nothing is promised of it but what holds of any."""
    tenants = {tenant: Tenant(weight=weight) for tenant, weight in weights.items()}

    def make(dice: random.Random, arriving_s: float) -> Setup:
        return setup(trace, tenants, workers=workers or 4, slots=slots or 16)

    def check(recording: Recording) -> list[promises.Check]:
        return [promises.nothing_left(recording)]

    return Scenario(name=name, about=f"{len(trace)} tasks", minutes=0, make=make, check=check, tenants=tuple(weights))
