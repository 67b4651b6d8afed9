"""The scenarios that ship: what comes, who may have how much, what breaks, and what must be true in the end."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec import Struct

from shared.config import Config, Limits, Pool
from shared.lifecycle import Lane, State
from shared.policy import EVERYBODY, Live, Policy, Tenant
from tests.simulate import measure
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
from tests.simulate.recording import Recording
from tests.simulate.trace import Row, ordered
from tests.simulate.world import POOL, Setup

WEIGHTS = {"gold": 3.0, "silver": 2.0, "bronze": 1.0}
MINUTE_S = 60.0
WITHIN = 0.10
"""Of its ideal share: what Headrace promises."""
WORKERS, SLOTS = 4, 16
ALIKE = fixed(200, 100, 200)


class Check(Struct, frozen=True):
    what: str
    ok: bool
    found: str


class Scenario(Struct, frozen=True):
    name: str
    about: str
    minutes: float
    """Of arrivals, by default."""
    make: Callable[[random.Random, float], Setup]
    """Given the time for which tasks arrive (s); seed and replicas are put in later."""
    check: Callable[[Recording], list[Check]]
    tenants: tuple[str, ...] = ()
    """Whose shares are drawn and measured."""
    lane: Lane | None = None


def setup(arrivals: Iterable[Row], tenants: dict[str, Tenant] | None = None, **named: object) -> Setup:
    limits = named.pop("limits", Limits())
    policy = Policy(tenants=tenants if tenants is not None else {name: Tenant(weight=w) for name, w in WEIGHTS.items()})
    config = Config(pools={POOL: Pool(model="simulated", engine="echo")}, limits=limits, live=Live(policy))  # type: ignore[arg-type]
    return Setup(rows=ordered(arrivals), config=config, **named)  # type: ignore[arg-type]


# -- what must be true


def all_done(recording: Recording) -> Check:
    found = measure.states(recording)
    done = found.get(State.COMPLETED, 0)
    ok = found.keys() <= {State.COMPLETED}
    return Check(
        "every task that was accepted is completed",
        ok,
        ", ".join(f"{n} {state}" for state, n in found.items()) or str(done),
    )


def nothing_left(recording: Recording) -> Check:
    return Check(
        "drained is empty: no slot, lease or count is left over",
        not recording.left,
        ", ".join(recording.left) or "nothing",
    )


def fair(recording: Recording, tenants: Sequence[str], *, least_s: float = 30.0) -> list[Check]:
    """Over the window in which all of them had tasks that waited."""
    window = measure.contested(recording, tenants)
    long = window[1] - window[0] >= least_s
    shares = measure.shares(recording, window, tenants)
    worst = max(shares, key=lambda share: abs(share.error))
    return [
        Check("the window is long enough to judge", long, f"{window[0]:.0f} s to {window[1]:.0f} s"),
        Check(
            f"shares of tokens within {WITHIN:.0%} of the weights",
            abs(worst.error) <= WITHIN,
            ", ".join(f"{share.tenant} {share.share:.1%} for {share.ideal:.1%}" for share in shares),
        ),
    ]


def work_conserving(recording: Recording, least: float = 0.95) -> Check:
    used = measure.utilisation(recording)
    return Check(f"slots at least {least:.0%} in use while tasks wait", used >= least, f"{used:.1%}")


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


def _weights(recording: Recording) -> list[Check]:
    return [*fair(recording, list(WEIGHTS)), all_done(recording), nothing_left(recording), work_conserving(recording)]


# -- who comes late


def _late(dice: random.Random, arriving_s: float) -> Setup:
    return setup(_loaded(dice, dict.fromkeys(WEIGHTS, ALIKE), 2.4, {"gold": arriving_s / 3}, arriving_s))


def _late_check(recording: Recording) -> list[Check]:
    began_s = min(task.row.arrival_s for task in recording.told if task.row.tenant == "gold")
    first_s = [t.waited_s or 0.0 for t in recording.told if t.row.tenant == "gold" and t.row.arrival_s < began_s + 5]
    runs_s = max(stint.ended_s - stint.began_s for stint in recording.stints)
    return [
        *_weights(recording),
        Check(
            "who comes late waits for a slot, not for its turn",
            min(first_s) <= runs_s,
            f"{min(first_s):.2f} s; a task runs {runs_s:.1f} s",
        ),
    ]


def _idle(dice: random.Random, arriving_s: float) -> Setup:
    """Gold asks for little at first, then nothing, then for as much as it can get."""
    little = steady(dice, capacity(ALIKE) * 0.03, 0, arriving_s / 4)
    again = _loaded(dice, dict.fromkeys(WEIGHTS, ALIKE), 2.4, {"gold": arriving_s / 2}, arriving_s)
    return setup([*rows(dice, little, "gold", Lane.NORMAL, ALIKE), *again])


def _idle_check(recording: Recording) -> list[Check]:
    began_s = measure.contested(recording, list(WEIGHTS))[0]
    gold = measure.shares(recording, (began_s + 2, began_s + 22), list(WEIGHTS))[0]
    return [
        *_weights(recording),
        Check(
            "in its first seconds back it gets its share, and no more",
            abs(gold.error) <= WITHIN,
            f"{gold.share:.1%} for {gold.ideal:.1%}",
        ),
    ]


# -- lanes


def _overtaking(dice: random.Random, arriving_s: float) -> Setup:
    """A batch of thousands at once; people come and go, in bursts of half of what the slots can do."""
    chat, item = lognormal(150, 100, 0.7, most=500), lognormal(300, 150, 0.7, most=1000)
    most = capacity(chat) / 2
    people = changing(dice, bursts(most / 20, most, 60.0, 15.0), most, 5.0, arriving_s)
    batch = rows(dice, at_once(int(arriving_s * capacity(item))), "archive", Lane.BATCH, item)
    chats = rows(dice, people, "people", Lane.INTERACTIVE, chat)
    return setup([*batch, *chats], {"people": Tenant(), "archive": Tenant()})


def _overtaking_check(recording: Recording) -> list[Check]:
    waited = measure.waits(recording)[Lane.INTERACTIVE]
    behind = measure.overtaken(recording)
    share = sum(count == 0 for count in behind) / len(behind)
    return [
        Check(
            "interactive tasks wait for a slot at most: p99 below a second",
            waited.p99_s <= 1.0,
            f"{waited.p99_s:.2f} s",
        ),
        Check(
            "no batch task starts while an interactive one waits",
            share == 1,
            f"of {share:.1%}; at worst {max(behind)} started",
        ),
        all_done(recording),
        nothing_left(recording),
    ]


# -- many tenants


def _many(dice: random.Random, arriving_s: float) -> Setup:
    """More than the slots can do in the first half, then less; most of it from a few of ten thousand tenants."""
    size = pareto(40, 40, 1.3, most=2000)
    rate = capacity(size, 8)
    arrivals = changing(dice, lambda at_s: rate * (1.3 if at_s < arriving_s / 2 else 0.6), rate * 1.3, 0, arriving_s)
    tasks = rows(dice, arrivals, zipf(10_000), Lane.NORMAL, size)
    return setup(tasks, {EVERYBODY: Tenant()}, workers=8)


def _many_check(recording: Recording) -> list[Check]:
    counts: dict[str, int] = {}
    for task in recording.told:
        counts[task.row.tenant] = counts.get(task.row.tenant, 0) + 1
    few = measure.waits(recording, lambda task: counts[task.row.tenant] <= 3)[Lane.NORMAL]
    many = measure.waits(recording, lambda task: counts[task.row.tenant] > 100)[Lane.NORMAL]
    return [
        Check(
            "who asks for little waits least: p95",
            few.p95_s < many.p50_s,
            f"{few.p95_s:.2f} s; median of the others {many.p50_s:.2f} s",
        ),
        Check(
            "nobody starves: longest wait of tenants of three tasks",
            few.longest_s <= many.p95_s,
            f"{few.longest_s:.2f} s",
        ),
        all_done(recording),
        nothing_left(recording),
        work_conserving(recording),
    ]


# -- faults and deadlines


def _dying(dice: random.Random, arriving_s: float) -> Setup:
    tasks = _loaded(dice, dict.fromkeys(WEIGHTS, lognormal(150, 100, 0.8)), 2.4, {}, arriving_s)
    broken: list[Fault] = list(faults(dice, 8, 15.0, 10.0, arriving_s))
    return setup(tasks, workers=8, faults=broken, limits=Limits(lease_s=10, crashes=10))


def _dying_check(recording: Recording) -> list[Check]:
    return [all_done(recording), nothing_left(recording), *fair(recording, list(WEIGHTS))]


def _overload(dice: random.Random, arriving_s: float) -> Setup:
    """Bursts of twice what the slots can do, on days that are full; everybody wants an answer within 20 s."""
    size = lognormal(150, 100, 0.8, most=1000)
    rate = capacity(size)
    day = diurnal(rate * 0.8, 0.4, arriving_s / 2)
    burst = bursts(0.0, rate * 1.2, 90.0, 20.0)
    people = changing(dice, lambda at_s: day(at_s) + burst(at_s), rate * 2.4, 0, arriving_s)
    tasks = rows(dice, people, zipf(200), Lane.NORMAL, size, expires_in_s=20.0)
    return setup(tasks, {EVERYBODY: Tenant()})


def _overload_check(recording: Recording) -> list[Check]:
    found, etas = measure.states(recording), measure.etas(recording)
    expired, accepted = found.get(State.EXPIRED, 0), sum(found.values())
    assert etas is not None
    return [
        Check("of what was accepted, at most 2% came too late", expired <= 0.02 * accepted, f"{expired} of {accepted}"),
        Check(
            "some of it was refused at the door",
            measure.refusals(recording).get("late", 0) > 0,
            str(measure.refusals(recording)),
        ),
        Check("the prediction is right within a second or a quarter, for 80%", etas.close >= 0.8, f"{etas.close:.1%}"),
        nothing_left(recording),
    ]


ALL = [
    Scenario("weights", "three tenants of weights 3:2:1, all tasks alike", 3, _equal, _weights, tuple(WEIGHTS)),
    Scenario(
        "sizes",
        "weights 3:2:1; tasks of one tenant are 15 times as long as those of another",
        6,
        _unequal,
        _weights,
        tuple(WEIGHTS),
    ),
    Scenario(
        "late",
        "a tenant of weight 3 comes when two others have queued for minutes",
        3,
        _late,
        _late_check,
        tuple(WEIGHTS),
    ),
    Scenario("idle", "a tenant of weight 3 is idle for minutes, and comes back", 6, _idle, _idle_check, tuple(WEIGHTS)),
    Scenario(
        "overtaking",
        "bursts of interactive tasks over a batch of thousands",
        5,
        _overtaking,
        _overtaking_check,
        ("people", "archive"),
    ),
    Scenario(
        "tenants",
        "10,000 tenants, by Zipf's law, sizes with heavy tails, overload for half of the time",
        10,
        _many,
        _many_check,
    ),
    Scenario(
        "dying", "eight workers, one of which dies or falls silent every 15 s", 6, _dying, _dying_check, tuple(WEIGHTS)
    ),
    Scenario(
        "overload", "bursts of twice the capacity; every task has a deadline of 20 s", 12, _overload, _overload_check
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

    def check(recording: Recording) -> list[Check]:
        return [nothing_left(recording)]

    return Scenario(name, f"{len(trace)} tasks", 0, make, check, tuple(weights))
