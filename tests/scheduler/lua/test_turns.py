"""turns.lua and fair.lua: whose turn it is. Properties of the real scripts, played in a time of their own: a task of so many
tokens runs for as long.
"""

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from services.inference.scripts import Hand, Owner, Release, Slots, beat, release, start
from services.scheduler.scripts import Dispatched, dispatch, due
from shared.bus.client import Bus
from shared.cancel import cancel
from shared.config import Config
from shared.lifecycle import Lane
from shared.policy import Live, Policy
from shared.submit import submit
from tests.support import tasks
from tests.support.tasks import CONFIG, LIMITS, SHARD

WEIGHTS = {"a": 3, "b": 2, "c": 1}
Sizes = Callable[[random.Random], int]
PROMPT = 10


class Play:
    """A shard with one worker, and what its tenants have got."""

    def __init__(self, bus: Bus, owner: Owner, *, rivals: int = 1) -> None:
        self.bus, self.owner, self.rivals = bus, owner, rivals
        self.dice = random.Random(7)
        self.got: Counter[str] = Counter()
        """Tokens of ended tasks, by tenant and by lane."""
        self.order: list[str] = []
        """Tasks as they were started."""
        self.running: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        self._tokens: dict[str, tuple[str, Lane, int]] = {}
        self._ends: list[tuple[float, str, Hand]] = []
        self._now = 0.0

    async def put(
        self, tenant: str, tokens: Sequence[int], lane: Lane = Lane.NORMAL, *, prompt: int = PROMPT, most: int = 2000
    ) -> list[str]:
        """So many tasks more, each with the tokens that it will use."""
        items = []
        for used in tokens:
            items.append(tasks.item(tenant=tenant, lane=lane, tokens_in=prompt, tokens_out=most))
            self._tokens[items[-1].id] = tenant, lane, used
        for first in range(0, len(items), 50):
            assert set(await submit(self.bus, SHARD, CONFIG, items[first : first + 50])) == {"new"}
        await tasks.admit_all(self.bus)
        self.waiting[tenant] += len(items)
        self.waiting[lane] += len(items)
        return [item.id for item in items]

    async def hand_out(self) -> None:
        await asyncio.gather(*(dispatch(self.bus, SHARD, CONFIG) for _ in range(self.rivals)))
        hands = await tasks.hands(self.bus, self.owner)
        if hands:
            await start(self.bus, self.owner, hands)
        for hand in hands:
            tenant, lane, used = self._tokens[hand.id]
            self.order.append(hand.id)
            self.running[tenant] += 1
            self.waiting.subtract((tenant, lane))
            heapq.heappush(self._ends, (self._now + used, hand.id, hand))

    async def end_one(self) -> None:
        self._now, id, hand = heapq.heappop(self._ends)
        tenant, lane, used = self._tokens[id]
        assert await tasks.finish_one(self.bus, self.owner, tasks.ending(hand, 1, 0, tokens=used)) == "ok"
        self.running[tenant] -= 1
        self.got.update({tenant: used, lane: used})

    async def run(self, tokens: float = float("inf"), while_waits: Sequence[str] = ()) -> Counter[str]:
        """What each got meanwhile: until so many tokens more are used, all has ended, or one of those waits for nothing."""
        before, total = self.got.copy(), 0
        while total < tokens:
            await self.hand_out()
            if not self._ends or any(not self.waiting[name] for name in while_waits):
                break
            await self.end_one()
            total = sum((self.got - before)[lane] for lane in Lane)
        return self.got - before


async def play(bus: Bus, slots: int | Slots = 8, *, rivals: int = 1, weights: dict[str, int] = WEIGHTS) -> Play:
    for tenant, weight in weights.items():
        await terms(bus, tenant, weight)
    owner = await tasks.worker(bus, slots=1)
    await announce(bus, owner, slots)
    return Play(bus, owner, rivals=rivals)


async def announce(bus: Bus, owner: Owner, slots: int | Slots) -> None:
    assert await beat(bus, owner, tasks.room(slots) if isinstance(slots, int) else slots, b"{}", []) == {}


async def terms(bus: Bus, tenant: str, weight: float = 1, cap: int = 0) -> None:
    await bus.commands.call("HSET", SHARD.tenants, tenant, f"{weight} {cap}")


def assert_shares(got: Counter[str], weights: dict[str, int], within: float = 0.1) -> None:
    total = sum(got[name] for name in weights)
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(got[name] / total - share) <= within * share, (
            f"{name} got {got[name]} of {total}, owed is {share:.3f}"
        )


def drawn(dice: random.Random, size: Sizes, count: int) -> list[int]:
    return [PROMPT + size(dice) for _ in range(count)]


EQUAL: dict[str, tuple[Sizes, int]] = dict.fromkeys("abc", (lambda dice: 100, 300))
SMALL_HAS_THE_WEIGHT: dict[str, tuple[Sizes, int]] = {
    "a": (lambda dice: dice.randint(30, 90), 800),
    "b": (lambda dice: dice.randint(50, 200), 300),
    "c": (lambda dice: dice.randint(300, 700), 60),
}
LARGE_HAS_THE_WEIGHT: dict[str, tuple[Sizes, int]] = {
    "a": (lambda dice: dice.randint(300, 700), 150),
    "b": (lambda dice: dice.randint(50, 200), 300),
    "c": (lambda dice: dice.randint(30, 90), 300),
}
HEAVY_TAILED: dict[str, tuple[Sizes, int]] = dict.fromkeys(
    "abc", (lambda dice: min(1000, int(20 * dice.paretovariate(1.2))), 600)
)


# -- tenants


@pytest.mark.parametrize("rivals", [1, 3])
@pytest.mark.parametrize(
    "sizes", [EQUAL, SMALL_HAS_THE_WEIGHT, LARGE_HAS_THE_WEIGHT, HEAVY_TAILED], ids=["equal", "small", "large", "heavy"]
)
async def test_tokens_follow_the_weights_whatever_the_sizes(
    bus: Bus, sizes: dict[str, tuple[Sizes, int]], rivals: int
) -> None:
    shard = await play(bus, rivals=rivals)
    for tenant, (size, count) in sizes.items():
        await shard.put(tenant, drawn(shard.dice, size, count))
    assert_shares(await shard.run(60_000, while_waits="abc"), WEIGHTS)


async def test_tenant_that_says_how_much_it_makes_gets_no_more_than_one_that_does_not(bus: Bus) -> None:
    weights = {"exact": 1, "vague": 1}
    shard = await play(bus, weights=weights)
    for used in drawn(shard.dice, lambda dice: dice.randint(10, 400), 120):
        await shard.put("exact", [used], most=used - PROMPT)
    await shard.put("vague", drawn(shard.dice, lambda dice: dice.randint(10, 400), 120))
    assert_shares(await shard.run(40_000, while_waits=[*weights]), weights)


async def test_late_tenant_gets_its_share_from_when_it_comes(bus: Bus) -> None:
    shard = await play(bus)
    for tenant in "ab":
        await shard.put(tenant, drawn(shard.dice, lambda dice: dice.randint(50, 150), 450))
    await shard.run(20_000)
    await shard.put("c", drawn(shard.dice, lambda dice: dice.randint(50, 150), 120))
    assert_shares(await shard.run(40_000, while_waits="abc"), WEIGHTS)


async def test_idle_tenant_banks_nothing(bus: Bus) -> None:
    weights = {"idle": 1, "busy": 1}
    shard = await play(bus, weights=weights)
    await shard.put("busy", [100] * 500)
    await shard.put("idle", [100] * 10)
    await shard.run(20_000)
    await shard.put("idle", [100] * 150)
    assert_shares(await shard.run(20_000, while_waits=[*weights]), weights)


async def test_tenant_that_comes_again_owes_what_it_was_given_before(bus: Bus) -> None:
    """Whoever has one task waiting at a time, and so leaves the turns with each, gets no more than its share."""
    weights = {"hopper": 1, "stayer": 1}
    shard = await play(bus, 2, weights=weights)
    await shard.put("stayer", [100] * 200)
    while shard.got["stayer"] + shard.got["hopper"] < 12_000:
        if not shard.waiting["hopper"]:
            await shard.put("hopper", [400])
        await shard.hand_out()
        await shard.end_one()
    assert shard.got["hopper"] <= 1.15 * shard.got["stayer"], shard.got


async def test_hundred_and_fifty_tenants_are_served_by_one_dispatch(bus: Bus) -> None:
    await tasks.worker(bus, slots=200)
    await submit(bus, SHARD, CONFIG, [tasks.item(tenant=f"t{n % 150}") for n in range(300)])
    await tasks.admit_all(bus)
    assert await dispatch(bus, SHARD, CONFIG, 150) == Dispatched(150, 150, 50)
    running = [await bus.commands.call("SCARD", SHARD.running(f"t{n}")) for n in range(150)]
    assert running == [1] * 150


# -- what a task is charged


async def tag(bus: Bus, tenant: str, lane: Lane = Lane.NORMAL) -> float:
    """Its virtual time, whether it takes turns or rests."""
    number = list(Lane).index(lane)
    for key in (SHARD.turns[number], SHARD.rested[number]):
        if (score := await bus.commands.call("ZSCORE", key, tenant)) is not None:
            return float(score)
    return float(await bus.commands.call("HGET", SHARD.fair, f"v:{lane}") or 0)


@pytest.mark.parametrize("used", [20, 2000], ids=["less", "more"])
async def test_what_a_task_used_is_settled_with_what_it_was_charged(bus: Bus, used: int) -> None:
    await terms(bus, "a", 4)
    owner = await tasks.worker(bus)
    for _ in range(2):
        await tasks.admitted(bus, tenant="a", tokens_in=100, tokens_out=300)
    await dispatch(bus, SHARD, CONFIG, 1)
    (hand,) = await tasks.hands(bus, owner)
    await start(bus, owner, [hand])
    charged, weight = (await tasks.fields(bus, hand.id))["charge"].split()
    assert weight == "4"
    assert await tag(bus, "a") == float(charged) / 4
    await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 0, tokens=used))
    assert await tag(bus, "a") == used / 4


async def test_task_that_is_tried_again_is_charged_once(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    await tasks.admitted(bus, tenant="a")
    other = await tasks.admitted(bus, tenant="a")
    await dispatch(bus, SHARD, CONFIG, 1)
    (hand,) = await tasks.hands(bus, owner)
    await start(bus, owner, [hand])
    charge, before = (await tasks.fields(bus, hand.id))["charge"], await tag(bus, "a")
    given_up = Release(hand.id, hand.epoch, hand.entry, 1, 0, b"", b"", 10, "none", "drained", 0)
    assert await release(bus, owner, [given_up]) == ["again"]
    await dispatch(bus, SHARD, CONFIG, 1)
    (again,) = await tasks.hands(bus, owner)
    assert again.id == hand.id != other
    assert ((await tasks.fields(bus, hand.id))["charge"], await tag(bus, "a")) == (charge, before)
    await start(bus, owner, [again])
    await tasks.finish_one(bus, owner, tasks.ending(again, 1, 0, attempt=2, tokens=50))
    assert await tag(bus, "a") == 50


async def test_task_whose_tokens_nobody_counts_keeps_its_charge(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    for _ in range(2):
        await tasks.admitted(bus, tenant="a", tokens_in=100, tokens_out=300)
    await dispatch(bus, SHARD, CONFIG, 1)
    (hand,) = await tasks.hands(bus, owner)
    await start(bus, owner, [hand])
    before = await tag(bus, "a")
    assert before > 100
    await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 0, tokens=0))
    assert await tag(bus, "a") == before


async def test_waiting_task_that_is_cancelled_costs_nothing(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    await tasks.admitted(bus, tenant="a")
    await tasks.admitted(bus, tenant="a")
    await dispatch(bus, SHARD, CONFIG, 1)
    (hand,) = await tasks.hands(bus, owner)
    assert await tag(bus, "a") > 0
    assert await cancel(bus, SHARD, LIMITS, [hand.id]) == ["cancelled"]
    assert await tag(bus, "a") == 0


# -- caps


async def test_tenant_never_runs_more_than_its_cap_and_others_take_the_rest(bus: Bus) -> None:
    shard = await play(bus, 6, weights={"capped": 5, "free": 1})
    await terms(bus, "capped", 5, 2)
    await shard.put("capped", [100] * 30)
    await shard.put("free", [100] * 60)
    while shard.waiting["capped"] and shard.waiting["free"]:
        await shard.hand_out()
        assert shard.running["capped"] <= 2
        assert shard.running["capped"] + shard.running["free"] == 6
        assert await bus.commands.call("ZSCORE", SHARD.turns[1], "capped") is None
        await shard.end_one()
    got = await shard.run()
    assert (got["capped"] + got["free"], shard.got["capped"]) == (got[Lane.NORMAL], 3000)


async def test_tenant_at_its_cap_in_one_lane_keeps_no_slot_of_another_one_empty(bus: Bus) -> None:
    await terms(bus, "capped", 1, 1)
    await tasks.admitted(bus, tenant="capped", lane=Lane.INTERACTIVE)
    await tasks.admitted(bus, tenant="capped", lane=Lane.NORMAL)
    await tasks.worker(bus, "w1", slots=1)
    assert (await dispatch(bus, SHARD, CONFIG)).handed_out == 1
    await tasks.admitted(bus, tenant="free", lane=Lane.NORMAL)
    await tasks.worker(bus, "w2", slots=1)
    assert (await dispatch(bus, SHARD, CONFIG)).handed_out == 1
    assert await bus.commands.call("SCARD", SHARD.running("free")) == 1


@pytest.mark.parametrize("said", ["1 0", "1 5", None])
async def test_tenant_whose_cap_is_lifted_takes_turns_at_its_next_end(bus: Bus, said: str | None) -> None:
    await terms(bus, "capped", 1, 1)
    owner = await tasks.worker(bus)
    for _ in range(3):
        await tasks.admitted(bus, tenant="capped")
    assert await dispatch(bus, SHARD, CONFIG) == Dispatched(1, 2, 3)
    change = ("HDEL", SHARD.tenants, "capped") if said is None else ("HSET", SHARD.tenants, "capped", said)
    await bus.commands.call(*change)
    (hand,) = await tasks.hands(bus, owner)
    await start(bus, owner, [hand])
    await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 0))
    assert await dispatch(bus, SHARD, CONFIG) == Dispatched(2, 0, 2)


async def test_suspect_that_is_put_aside_keeps_no_slot_empty(bus: Bus) -> None:
    await tasks.worker(bus, slots=2)
    for tenant in ("a", "b"):
        id = await tasks.admitted(bus, tenant=tenant)
        await bus.commands.call("HSET", SHARD.task(id), "crashes", LIMITS.crashes - 1)
    assert (await dispatch(bus, SHARD, CONFIG, 1)).handed_out == 1
    await tasks.admitted(bus, tenant="c")
    await bus.commands.call("ZADD", SHARD.turns[1], 99, "c")
    assert await dispatch(bus, SHARD, CONFIG) == Dispatched(1, 1, 0)
    assert await bus.commands.call("SCARD", SHARD.running("c")) == 1


# -- lanes


async def test_burst_of_an_urgent_lane_goes_first(bus: Bus) -> None:
    shard = await play(bus, 4)
    await shard.put("a", [1000] * 30, Lane.BATCH, prompt=1000, most=1)
    await shard.run(8000)
    before = len(shard.order)
    burst = await shard.put("a", [1000] * 10, Lane.INTERACTIVE, prompt=1000, most=1)
    await shard.run(10_000)
    assert set(shard.order[before : before + 10]) == set(burst)


async def test_flood_of_an_urgent_lane_leaves_the_others_their_shares(bus: Bus) -> None:
    shares = {Lane.INTERACTIVE: 7, Lane.NORMAL: 2, Lane.BATCH: 1}
    shard = await play(bus, 4)
    for lane, share in shares.items():
        await shard.put("a", [500] * (60 + 40 * share), lane, prompt=500, most=1)
    await shard.run(45_000)  # until the urgent ones are ahead as far as they may be
    assert_shares(await shard.run(60_000, while_waits=list(Lane)), {lane.value: n for lane, n in shares.items()}, 0.2)


async def test_lane_takes_what_others_leave(bus: Bus) -> None:
    shard = await play(bus, 4)
    await shard.put("a", [100] * 20, Lane.BATCH)
    got = await shard.run()
    assert got == {"a": 2000, Lane.BATCH: 2000}


async def test_lane_that_is_kept_back_by_its_slots_banks_nothing(bus: Bus) -> None:
    shard = await play(bus, Slots(8, 8, 1))
    await shard.put("a", [500] * 250, Lane.NORMAL, prompt=500, most=1)
    await shard.put("a", [500] * 80, Lane.BATCH, prompt=500, most=1)
    limited = await shard.run(60_000)
    assert limited[Lane.BATCH] < limited[Lane.NORMAL] / 5
    await announce(bus, shard.owner, 8)
    got = await shard.run(40_000, while_waits=[Lane.NORMAL, Lane.BATCH])
    assert got[Lane.BATCH] <= 1.2 * got[Lane.NORMAL] / 2, got


async def test_lane_that_comes_after_a_pause_is_not_behind(bus: Bus) -> None:
    """One interactive task goes before all that wait in other lanes, whatever was charged and given back before."""
    shard = await play(bus, 4)
    await shard.put("a", [20] * 400, Lane.NORMAL)
    for _ in range(10):
        await shard.run(400)
        (alone,) = await shard.put("b", [20], Lane.INTERACTIVE)
        before = len(shard.order)
        await shard.run(40)
        assert shard.order[before] == alone


@pytest.mark.parametrize("hurried", ["", "1"])
async def test_task_of_a_lane_that_no_worker_runs_is_accepted_without_an_estimate(bus: Bus, hurried: str) -> None:
    await play(bus, Slots(4, 4, 0))
    await tasks.admitted(bus, lane=Lane.NORMAL)
    await dispatch(bus, SHARD, CONFIG)
    await bus.commands.call("HSET", SHARD.fair, "run_ms:batch", "1000")
    await tasks.submitted(bus, lane=Lane.BATCH)
    id = await tasks.submitted(bus, lane=Lane.BATCH, hurried=hurried)
    assert (await tasks.fields(bus, id))["eta_ms"] == "-1"


# -- where it goes


def with_affinity(share: float) -> Config:
    return Config(pools=CONFIG.pools, live=Live(Policy(affinity=share)))


async def chosen(bus: Bus, config: Config, *owners: Owner, prefix: str) -> str:
    """The worker that the next task gets."""
    id = await tasks.admitted(bus, prefix=prefix)
    assert (await dispatch(bus, SHARD, config)).handed_out == 1
    (worker,) = [owner.worker for owner in owners if [hand.id for hand in await tasks.hands(bus, owner)] == [id]]
    return worker


async def test_task_goes_where_its_beginning_is_until_that_worker_is_too_full(bus: Bus) -> None:
    owners = [await tasks.worker(bus, "warm", slots=4), await tasks.worker(bus, "cold", slots=16)]
    await bus.commands.call("SET", SHARD.prefix("abc"), "warm", "PX", 600_000)
    went = [await chosen(bus, with_affinity(0.5), *owners, prefix="abc") for _ in range(4)]
    assert went == ["warm", "warm", "cold", "cold"]
    assert await bus.commands.call("GET", SHARD.prefix("abc")) == b"cold"


async def test_affinity_of_zero_looks_at_the_room_alone(bus: Bus) -> None:
    owners = [await tasks.worker(bus, "warm", slots=4), await tasks.worker(bus, "cold", slots=16)]
    await bus.commands.call("SET", SHARD.prefix("abc"), "warm", "PX", 600_000)
    assert await chosen(bus, with_affinity(0), *owners, prefix="abc") == "cold"


async def test_longest_beginning_decides(bus: Bus) -> None:
    owners = [await tasks.worker(bus, name) for name in ("w1", "w2", "w3")]
    await bus.commands.call("SET", SHARD.prefix("aa"), "w1", "PX", 600_000)
    await bus.commands.call("SET", SHARD.prefix("bb"), "w3", "PX", 600_000)
    assert await chosen(bus, with_affinity(0.9), *owners, prefix="cc,bb,aa") == "w3"
    assert [await bus.commands.call("GET", SHARD.prefix(digest)) for digest in ("cc", "bb", "aa")] == [b"w3"] * 3


async def test_worker_that_is_gone_or_has_no_room_for_the_lane_is_not_waited_for(bus: Bus) -> None:
    owners = [await tasks.worker(bus, "warm"), await tasks.worker(bus, "cold")]
    await bus.commands.call("SET", SHARD.prefix("aa"), "gone", "PX", 600_000)
    assert await chosen(bus, with_affinity(1), *owners, prefix="aa") in ("warm", "cold")
    await bus.commands.call("SET", SHARD.prefix("aa"), "warm", "PX", 600_000)
    await announce(bus, owners[0], Slots(4, 0, 0))
    assert await chosen(bus, with_affinity(1), *owners, prefix="aa") == "cold"


# -- groups of the lane batch


async def in_turn(bus: Bus, *prefixes: str, tenant: str = "a") -> list[int]:
    """The order in which batch tasks go that came with these beginnings, one in each millisecond."""
    ids = [await batched(bus, prefix, tenant) for prefix in prefixes]
    owner = await tasks.worker(bus, slots=len(ids))
    await dispatch(bus, SHARD, CONFIG)
    return [ids.index(hand.id) for hand in await tasks.hands(bus, owner)]


async def batched(bus: Bus, prefix: str, tenant: str = "a") -> str:
    """One that came in a later millisecond than all before."""
    began = await bus.commands.call("TIME")
    while True:
        now = await bus.commands.call("TIME")
        if [int(now[0]), int(now[1]) // 1000] > [int(began[0]), int(began[1]) // 1000]:
            return await tasks.admitted(bus, tenant=tenant, lane=Lane.BATCH, prefix=prefix)


async def place(bus: Bus, id: str, tenant: str = "a") -> float:
    return float(await bus.commands.call("ZSCORE", SHARD.backlog(Lane.BATCH, tenant), id))


async def test_batch_tasks_that_begin_alike_run_together(bus: Bus) -> None:
    assert await in_turn(bus, "p", "q", "p", "", "q", "p") == [0, 2, 5, 1, 4, 3]


async def test_longer_beginnings_run_together_inside_their_group(bus: Bus) -> None:
    order = await in_turn(bus, "p", "r", "x,p", "y,p", "x,p", "p")
    assert order in ([0, 5, 2, 4, 3, 1], [0, 5, 3, 2, 4, 1])


async def test_groups_are_of_a_tenant(bus: Bus) -> None:
    first = await batched(bus, "p", "a")
    second = await batched(bus, "p", "b")
    came = float((await tasks.fields(bus, second))["created_at_ms"])
    assert await place(bus, first, "a") < came <= await place(bus, second, "b")


async def test_nobody_is_overtaken_once_the_group_takes_no_more(bus: Bus) -> None:
    first, other = await batched(bus, "p"), await batched(bus, "q")
    ttl_ms = await tasks.ttl_ms(bus, SHARD.group("a:p"))
    assert 0 < ttl_ms <= 600_000
    await bus.commands.call("DEL", SHARD.group("a:p"))  # its time is over
    late = await batched(bus, "p")
    assert await place(bus, first) < await place(bus, other) < await place(bus, late)


async def test_group_of_a_longer_beginning_takes_no_more_than_its_own_group(bus: Bus) -> None:
    """Else a chain of ever longer prompts would overtake all others for ever."""
    other = await batched(bus, "q")
    came_ms = int((await tasks.fields(bus, other))["created_at_ms"])
    await bus.commands.call("SET", SHARD.group("a:p"), came_ms - 600_001, "PX", 1000)
    late = await batched(bus, "x,p")
    assert await place(bus, other) < await place(bus, late)


# -- the end


async def test_nobody_is_ahead_of_anybody_once_all_has_ended(bus: Bus) -> None:
    shard = await play(bus, 4)
    for tenant in "abc":
        for lane in Lane:
            await shard.put(tenant, [50] * 5, lane)
    await terms(bus, "b", 2, 1)
    await shard.run()
    await due(bus, SHARD, LIMITS)
    left = [key.decode().removeprefix(SHARD.base) for key in await bus.commands.call("KEYS", SHARD.base + "*")]
    gone = ("turns:", "rested:", "running:", "backlog:", "waiting", "held", "means", "expiry", "leases", "later")
    assert not [key for key in left if key.startswith(gone)]
    fields = (await bus.commands.call("HGETALL", SHARD.fair))[::2]
    assert not [field for field in fields if field.startswith((b"v:", b"t:"))]
