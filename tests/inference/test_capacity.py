"""How many tasks a worker takes at once: bounds, who pays, how often, and where it comes to rest."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import astuple

from services.inference.capacity import (
    FLIGHT_S,
    HIGH_KV,
    REFUSED_TASKS,
    STANDING,
    WINDOW,
    Decrease,
    Limiter,
    Signal,
    ceilings,
)
from services.inference.engine import Capacity
from services.inference.scripts import Slots
from shared.lifecycle import Lane

INTERACTIVE, NORMAL, BATCH = Lane
CEILINGS = Slots(16, 16, 12)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A limiter, and an engine that says what it is told to."""

    def __init__(self, ceilings: Slots = CEILINGS) -> None:
        self.clock, self.ceilings = Clock(), ceilings
        self.limiter = Limiter(ceilings, self.clock)
        self.steps = self.preemptions = self.made = 0
        self.running: dict[str, Lane] = {}

    def begin(self, lane: Lane, count: int = 1) -> list[str]:
        ids = [f"t{self.made + i}" for i in range(count)]
        self.made += count
        for id in ids:
            self.running[id] = lane
            self.limiter.began(id, lane)
        return ids

    def end(self, *ids: str, well: bool = True) -> None:
        for id in ids or list(self.running):
            del self.running[id]
            self.limiter.ended(id, well=well)

    def refuse(self, *ids: str) -> list[Decrease]:
        """The engine refuses these tasks, and they go back."""
        decreases = [decrease for id in ids if (decrease := self.limiter.refused(id)) is not None]
        self.end(*ids, well=False)
        return decreases

    def look(self, *, running: int = 0, waiting: int = 0, kv_use: float = 0.0, preempted: int = 0) -> Decrease | None:
        self.steps += 1
        self.preemptions += preempted
        told = Capacity(
            slots=self.ceilings.total,
            running=running,
            waiting=waiting,
            kv_use=kv_use,
            preemptions=self.preemptions,
            steps=self.steps,
        )
        return self.limiter.look(told, self.ceilings)

    def flight(self, lane: Lane) -> None:
        """As many tasks as the lane may hold, from their start to their end."""
        most = dict(zip(Lane, (self.slots.total, self.slots.normal, self.slots.batch), strict=True))
        self.end(*self.begin(lane, most[lane]))

    @property
    def slots(self) -> Slots:
        return self.limiter.slots


def test_without_a_signal_only_the_ceilings_hold() -> None:
    bench = Bench()
    for _ in range(10):
        bench.flight(BATCH)
        assert bench.look(kv_use=0.5) is None
    assert bench.slots == CEILINGS


def test_ceilings_are_the_shares_of_the_slots_one_at_least_and_nested() -> None:
    assert ceilings(16, {INTERACTIVE: 1.0, NORMAL: 0.5, BATCH: 0.75}) == Slots(16, 8, 8)
    assert ceilings(1, {INTERACTIVE: 1.0, NORMAL: 1.0, BATCH: 0.75}) == Slots(1, 1, 1)


def test_ceilings_of_another_policy_are_in_force_at_the_next_look() -> None:
    bench = Bench()
    bench.ceilings = Slots(8, 4, 2)
    bench.look()
    assert bench.slots == Slots(8, 4, 2)
    bench.ceilings = CEILINGS
    bench.look()
    assert bench.slots == CEILINGS


def test_a_preemption_halves_what_was_held_not_the_limit_above_it() -> None:
    bench = Bench()
    bench.begin(BATCH, 6)
    assert bench.look(preempted=1) == Decrease(BATCH, Signal.PREEMPTED)
    assert bench.slots == Slots(16, 16, 3)


def test_a_small_overload_costs_little() -> None:
    bench = Bench()
    bench.begin(INTERACTIVE, 2)
    bench.begin(BATCH, 10)
    assert bench.look(running=11, preempted=1) == Decrease(BATCH, Signal.PREEMPTED)
    assert bench.slots == Slots(16, 16, 7)
    bench.clock.now_s += FLIGHT_S
    bench.end(*list(bench.running)[-3:])
    assert bench.look(running=9, preempted=1) == Decrease(BATCH, Signal.PREEMPTED)
    assert bench.slots == Slots(16, 16, 6)


@pytest.mark.parametrize(
    ("signal", "told"), [(Signal.WAITING, {"waiting": 2}), (Signal.KV_USE, {"kv_use": HIGH_KV})], ids=str
)
def test_what_passes_by_itself_is_no_signal(signal: Signal, told: dict[str, int]) -> None:
    bench = Bench()
    bench.begin(BATCH, 8)
    for _ in range(STANDING - 1):
        assert bench.look(**told) is None
    assert bench.look() is None
    for _ in range(STANDING - 1):
        assert bench.look(**told) is None
    assert bench.look(**told) == Decrease(BATCH, signal)


def test_the_figures_of_an_engine_that_stands_still_are_read_once() -> None:
    bench = Bench()
    bench.begin(BATCH, 8)
    bench.look(waiting=9)
    for _ in range(10):
        bench.steps -= 1
        assert bench.look(waiting=9) is None


def test_one_request_may_wait_inside_the_engine() -> None:
    bench = Bench()
    bench.begin(BATCH, 8)
    assert [bench.look(waiting=1) for _ in range(3 * STANDING)] == [None] * 3 * STANDING


def test_refusals_of_several_tasks_halve_and_the_others_of_their_flight_do_not() -> None:
    bench = Bench()
    ids = bench.begin(INTERACTIVE, 8)
    assert [bench.limiter.refused(id) for id in ids] == [None, None, Decrease(INTERACTIVE, Signal.REFUSED), *[None] * 5]
    bench.end(well=False)
    assert bench.slots.total == 4
    ids = bench.begin(INTERACTIVE, 4)
    assert [bench.limiter.refused(id) is not None for id in ids] == [False, False, True, False]
    assert bench.slots == Slots(2, 2, 2)


def test_a_refusal_or_two_may_be_for_the_requests_own_sake() -> None:
    bench = Bench(Slots(256, 256, 128))
    bench.begin(NORMAL, 2)
    assert bench.refuse(*bench.begin(NORMAL, REFUSED_TASKS - 1)) == []
    assert bench.slots == Slots(256, 256, 128)


def test_one_task_that_is_refused_again_and_again_is_no_sign_of_load() -> None:
    bench = Bench()
    bench.begin(NORMAL, 8)
    for _ in range(WINDOW):
        assert bench.limiter.refused("t0") is None


def test_refusals_that_are_rare_among_the_answers_are_no_sign_of_load() -> None:
    bench = Bench()
    bench.begin(NORMAL, 8)
    for _ in range(10):
        assert bench.refuse(*bench.begin(NORMAL, REFUSED_TASKS - 1)) == []
        for _ in range(WINDOW):
            bench.end(*bench.begin(NORMAL))
    assert bench.slots == CEILINGS


def test_refusals_of_tasks_that_run_alone_are_no_sign_of_load() -> None:
    bench = Bench(Slots(256, 256, 128))
    for _ in range(WINDOW):
        assert bench.refuse(*bench.begin(NORMAL)) == []
    assert bench.slots == Slots(256, 256, 128)


def test_refusals_while_little_runs_halve_the_limits_not_what_runs() -> None:
    """A limit that is not in use is not what overloads the engine."""
    bench = Bench(Slots(256, 256, 128))
    first = bench.begin(NORMAL, 2)
    assert bench.refuse(*bench.begin(NORMAL, REFUSED_TASKS)) == [Decrease(NORMAL, Signal.REFUSED)]
    assert bench.slots == Slots(128, 128, 64)
    bench.end(*first)
    bench.begin(NORMAL, 2)
    assert bench.refuse(*bench.begin(NORMAL, REFUSED_TASKS - 1)) == [], "what was refused before is paid for"
    assert bench.slots == Slots(128, 128, 64)


def test_refusals_that_go_on_come_down_to_what_runs_and_then_below_it() -> None:
    bench = Bench(Slots(256, 256, 128))
    cut = [bench.slots]
    for _ in range(6):
        ids = bench.begin(NORMAL, min(20, bench.slots.normal))
        assert len(bench.refuse(*ids[: len(ids) - 1])) == 1
        bench.end(well=False)
        cut.append(bench.slots)
    assert [slots.normal for slots in cut] == [256, 128, 64, 32, 10, 5, 2]
    assert [slots.total for slots in cut] == [256, 128, 64, 32, 32, 32, 32]


def test_refusals_do_not_cut_a_limit_to_what_a_lane_holds_that_has_little_to_do() -> None:
    bench = Bench(Slots(256, 256, 128))
    bench.begin(BATCH, 2)
    bench.begin(NORMAL, 200)
    assert bench.refuse(*bench.begin(NORMAL, REFUSED_TASKS)) == [Decrease(BATCH, Signal.REFUSED)]
    assert bench.slots == Slots(128, 128, 64)


def test_a_flight_ends_after_a_while_even_if_a_task_of_it_does_not() -> None:
    bench = Bench()
    bench.begin(BATCH, 8)
    assert bench.look(preempted=1) is not None
    bench.clock.now_s = FLIGHT_S - 0.1
    assert bench.look(preempted=1) is None
    bench.clock.now_s = FLIGHT_S
    assert bench.look(preempted=1) is not None
    assert bench.slots.batch == 2


def test_the_least_urgent_lane_pays_first() -> None:
    bench = Bench()
    bench.begin(INTERACTIVE, 6)
    bench.begin(NORMAL, 6)
    bench.begin(BATCH, 4)
    paid = []
    while decrease := bench.look(preempted=1):
        paid.append(decrease.lane)
        bench.clock.now_s += FLIGHT_S
    assert paid == [BATCH, BATCH, NORMAL, NORMAL, INTERACTIVE, INTERACTIVE]
    assert bench.slots == Slots(1, 1, 1)


def test_a_lane_does_not_pay_for_tasks_that_another_may_not_hold_any_more() -> None:
    bench = Bench()
    bench.begin(BATCH, 12)
    paid = []
    while decrease := bench.look(preempted=1):
        paid.append(decrease.lane)
        bench.clock.now_s += FLIGHT_S
    assert set(paid) == {BATCH}
    assert bench.slots == Slots(16, 16, 1)


def test_a_lane_that_holds_nothing_keeps_its_limit() -> None:
    bench = Bench()
    bench.begin(INTERACTIVE, 16)
    assert bench.look(preempted=1) == Decrease(INTERACTIVE, Signal.PREEMPTED)
    assert bench.slots == Slots(8, 8, 8)
    bench.end()
    bench.look()
    for _ in range(8):
        bench.flight(INTERACTIVE)
        bench.look()
    assert bench.slots == CEILINGS


def test_the_most_urgent_limit_that_is_felt_recovers_first() -> None:
    bench = Bench()
    bench.begin(INTERACTIVE, 4)
    bench.begin(NORMAL, 4)
    bench.begin(BATCH, 8)
    while bench.look(preempted=1):
        bench.clock.now_s += FLIGHT_S
    assert bench.slots == Slots(1, 1, 1)
    bench.end()
    bench.look()
    grown = [bench.slots]
    for _ in range(100):
        now = bench.slots
        bench.begin(BATCH, now.batch)
        bench.begin(NORMAL, now.normal - now.batch)
        bench.begin(INTERACTIVE, now.total - now.normal)
        bench.end()
        grown.append(bench.slots)
    assert grown[-1] == CEILINGS
    totals, batches = [slots.total for slots in grown], [slots.batch for slots in grown]
    assert totals == sorted(totals)
    assert batches == sorted(batches)
    assert all(slots.batch == 1 for slots in grown if slots.normal < 16)
    assert all(slots.normal == 1 for slots in grown if slots.total < 16)


def test_a_limit_that_nobody_comes_up_against_holds_none_of_the_others_back() -> None:
    """Interactive work has gone home, and left the limit of all at half: batch work recovers up to that, then lifts it."""
    bench = Bench()
    bench.begin(INTERACTIVE, 16)
    bench.look(preempted=1)
    bench.end()
    bench.begin(BATCH, 8)
    bench.look(preempted=1)
    bench.end()
    bench.look()
    assert bench.slots == Slots(8, 8, 4)
    for _ in range(100):
        bench.flight(BATCH)
    assert bench.slots.batch == CEILINGS.batch
    assert bench.slots.total >= CEILINGS.batch


def test_growth_is_one_task_a_flight() -> None:
    bench = Bench()
    bench.begin(BATCH, 12)
    bench.look(preempted=1)
    bench.end()
    assert bench.slots.batch == 6
    bench.look()
    running = bench.begin(BATCH, 6)
    for ended in range(1, 8):
        assert bench.slots.batch == (6 if ended < 7 else 7)
        bench.end(running.pop(0))
        running += bench.begin(BATCH)


def test_a_limit_that_was_not_reached_does_not_grow() -> None:
    bench = Bench()
    bench.begin(BATCH, 12)
    bench.look(preempted=1)
    bench.end()
    bench.look()
    for _ in range(100):
        bench.end(*bench.begin(BATCH, 5))
    assert bench.slots.batch == 6


def test_tasks_that_failed_do_not_make_a_limit_grow() -> None:
    bench = Bench()
    bench.begin(BATCH, 12)
    bench.look(preempted=1)
    bench.end()
    bench.look()
    for _ in range(10):
        bench.end(*bench.begin(BATCH, 6), well=False)
    assert bench.slots.batch == 6


def test_near_its_limit_an_engine_is_left_as_it_is() -> None:
    bench = Bench()
    bench.begin(BATCH, 12)
    bench.look(preempted=1)
    bench.end()
    for _ in range(20):
        bench.flight(BATCH)
        assert bench.look(kv_use=0.92) is None
    assert bench.slots.batch == 6


def test_a_large_engine_recovers_in_as_many_flights_as_a_small_one() -> None:
    def flights(slots: int) -> int:
        bench = Bench(Slots(slots, slots, slots))
        bench.begin(BATCH, slots)
        while bench.look(preempted=1):
            bench.clock.now_s += FLIGHT_S
        bench.end()
        bench.look()
        for count in range(1000):
            if bench.slots.batch == slots:
                return count
            bench.flight(BATCH)
        raise AssertionError("it never recovers")

    assert flights(64) == 63
    assert 60 <= flights(1000) <= 70


class Move(Struct, frozen=True):
    what: str
    lane: Lane
    count: int


MOVES = st.builds(
    Move,
    what=st.sampled_from(["begin", "end", "fail", "calm", "waiting", "preempted", "full", "refused", "later"]),
    lane=st.sampled_from(list(Lane)),
    count=st.integers(1, 40),
)


def make(bench: Bench, move: Move) -> Decrease | None:
    of_lane = [id for id, lane in bench.running.items() if lane is move.lane][: move.count]
    match move.what:
        case "begin":
            bench.begin(move.lane, move.count)
        case "end" | "fail" if of_lane:
            bench.end(*of_lane, well=move.what == "end")
        case "calm":
            return bench.look()
        case "waiting":
            return bench.look(waiting=move.count)
        case "preempted":
            return bench.look(preempted=1)
        case "full":
            return bench.look(kv_use=1.0)
        case "refused":
            for task_id in of_lane:
                if (decrease := bench.limiter.refused(task_id)) is not None:
                    return decrease
        case "later":
            bench.clock.now_s += move.count
    return None


@given(st.lists(MOVES, max_size=80), st.integers(1, 300), st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_whatever_happens_the_limits_are_nested_and_one_at_least(
    moves: list[Move], slots: int, total: float, normal: float, batch: float
) -> None:
    bench = Bench(ceilings(slots, {INTERACTIVE: total, NORMAL: normal, BATCH: batch}))
    for move in moves:
        make(bench, move)
        now = bench.slots
        assert 1 <= now.batch <= now.normal <= now.total <= bench.ceilings.total
        assert now.normal <= bench.ceilings.normal
        assert now.batch <= bench.ceilings.batch


@given(st.lists(MOVES, max_size=80))
def test_whatever_happens_there_is_one_decrease_a_flight_and_the_least_urgent_pays(moves: list[Move]) -> None:
    bench = Bench()
    flight, over_s = set[str](), 0.0
    for move in moves:
        before, held = bench.slots, dict(bench.running)
        decrease = make(bench, move)
        if decrease is None:
            continue
        halved = Slots(*(max(1, most // 2) for most in astuple(before)))
        if decrease.signal is Signal.REFUSED and bench.slots == halved:
            flight, over_s = set(bench.running), bench.clock.now_s + FLIGHT_S
            continue
        assert not flight & held.keys() or bench.clock.now_s >= over_s
        flight, over_s = set(bench.running), bench.clock.now_s + FLIGHT_S
        less_urgent = [lane for lane in held.values() if lane.priority > decrease.lane.priority]
        assert len(less_urgent) <= 1 or before.batch == 1
        after = dict(zip(Lane, (bench.slots.total, bench.slots.normal, bench.slots.batch), strict=True))
        in_reach = [lane for lane in held.values() if lane.priority >= decrease.lane.priority]
        assert 1 <= after[decrease.lane] < len(in_reach)


@given(st.lists(MOVES, max_size=80), st.integers(1, 300))
def test_whatever_happens_refusals_leave_a_quarter_of_each_limit(moves: list[Move], slots: int) -> None:
    bench = Bench(Slots(slots, slots, max(1, slots // 2)))
    for move in moves:
        before = bench.slots
        decrease = make(bench, move)
        if decrease is not None and decrease.signal is Signal.REFUSED:
            assert all(after >= most // 4 for after, most in zip(astuple(bench.slots), astuple(before), strict=True))


class Engine:
    """A batching engine whose KV cache holds `tokens`, and that computes so many tokens of prompts a step.

    What does not fit waits, or is preempted: then all it had must be computed again.
    """

    PROMPTS = 128

    def __init__(self, tokens: int, make_lengths: Callable[[], tuple[int, int]]) -> None:
        self.tokens, self._lengths = tokens, make_lengths
        self.running: dict[str, list[int]] = {}
        """[tokens held, tokens still to make, tokens of them still to compute]"""
        self.waiting: dict[str, list[int]] = {}
        self.preemptions = self.steps = self.done = 0

    def add(self, id: str) -> None:
        prompt, answer = self._lengths()
        self.waiting[id] = [prompt, answer, prompt]

    @property
    def used(self) -> int:
        return sum(task[0] for task in self.running.values())

    def step(self) -> list[str]:
        """What has ended."""
        self.steps += 1
        while self.waiting and self.used + next(iter(self.waiting.values()))[0] <= self.tokens:
            id = next(iter(self.waiting))
            self.running[id] = self.waiting.pop(id)
        while self.used + len(self.running) > self.tokens:
            id, (held, left, _) = self.running.popitem()
            self.waiting = {id: [held, left, held]} | self.waiting
            self.preemptions += 1
        prompts = self.PROMPTS
        for task in self.running.values():
            computed = min(prompts, task[2])
            prompts, task[2] = prompts - computed, task[2] - computed
            if not task[2]:
                task[0], task[1] = task[0] + 1, task[1] - 1
        ended = [id for id, task in self.running.items() if task[1] <= 0]
        for id in ended:
            del self.running[id]
        self.done += len(ended)
        return ended

    def capacity(self, slots: int) -> Capacity:
        return Capacity(
            slots=slots,
            running=len(self.running),
            waiting=len(self.waiting),
            kv_use=self.used / self.tokens,
            preemptions=self.preemptions,
            steps=self.steps,
        )


class Simulated(Struct):
    held: float
    """Tasks inside the engine, on average."""
    done: int
    preemptions: int
    decreases: int


def simulate(seed: int, fits: int, *, adaptive: bool, slots: int = 64, steps: int = 8000) -> Simulated:
    """Batch work without end on an engine whose cache holds `fits` tasks of average age; the second half is counted.

    Steps take as long whatever they hold, so that too many tasks cost nothing but what is computed twice.
    """
    dice, bench = random.Random(seed), Bench(Slots(slots, slots, slots))
    engine = Engine(fits * 150, lambda: (dice.randint(50, 150), dice.randint(60, 140)))
    held, decreases, before = 0, 0, (0, 0)
    for step in range(steps):
        bench.clock.now_s += 0.05
        room = bench.slots.batch if adaptive else slots
        for id in bench.begin(BATCH, max(0, room - len(bench.running))):
            engine.add(id)
        if ended := engine.step():
            bench.end(*ended)
        if step % 5 == 0:
            decreases += bench.limiter.look(engine.capacity(slots), bench.ceilings) is not None and step >= steps // 2
        if step == steps // 2:
            before = engine.done, engine.preemptions
        elif step > steps // 2:
            held += len(bench.running)
    done, preemptions = engine.done - before[0], engine.preemptions - before[1]
    return Simulated(held / (steps / 2), done, preemptions, decreases)


@pytest.mark.parametrize(("fits", "kept"), [(4, 0.6), (12, 0.75), (40, 0.8)])
def test_it_comes_to_rest_near_what_the_kv_cache_holds(fits: int, kept: float) -> None:
    for seed in range(3):
        open_loop, adapted = simulate(seed, fits, adaptive=False), simulate(seed, fits, adaptive=True)
        assert 0.6 * fits <= adapted.held <= 1.1 * fits
        assert open_loop.held > 60
        assert adapted.done >= kept * open_loop.done
        assert adapted.preemptions <= 0.2 * open_loop.preemptions


def test_an_engine_that_holds_everything_is_left_alone() -> None:
    result = simulate(1, 100, adaptive=True)
    assert (result.decreases, result.preemptions) == (0, 0)
    assert result.held > 63
