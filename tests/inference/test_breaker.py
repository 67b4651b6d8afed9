"""The circuit breaker of an engine over HTTP: what opens it, how long, and what closes it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.breaker import (
    BUDGET_S,
    CALM_S,
    FAILED_TASKS,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    LONGEST_UNREACHED_S,
    RETRIES_FREE,
    RETRY_SHARE,
    WINDOW,
    Breaker,
    RetryBudget,
    State,
    Why,
)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock, lambda: 1.0)


def fail(breaker: Breaker, task: str) -> Why | None:
    return breaker.answered(task, breaker.began(), failed=True)


def do_well(breaker: Breaker, task: str = "t") -> Why | None:
    return breaker.answered(task, breaker.began(), failed=False)


def state_of(breaker: Breaker) -> State:
    """For mypy, which takes it that a state stays what it was asserted to be."""
    return breaker.state


def open_it(breaker: Breaker) -> None:
    while state_of(breaker) is State.CLOSED:
        for task in range(FAILED_TASKS):
            fail(breaker, f"t{task}")


def test_failures_of_enough_tasks_open_it(breaker: Breaker) -> None:
    for task in range(FAILED_TASKS - 1):
        assert fail(breaker, f"t{task}") is None
    assert state_of(breaker) is State.CLOSED
    assert fail(breaker, "another") is Why.FAILURES
    assert state_of(breaker) is State.OPEN


def test_one_bad_task_does_not_open_it_however_often_it_is_tried(breaker: Breaker) -> None:
    for _ in range(RETRIES_FREE):
        assert fail(breaker, "poison") is None
    assert state_of(breaker) is State.CLOSED


def test_a_few_failures_among_many_answers_do_not_open_it(breaker: Breaker) -> None:
    for task in range(200):
        for _ in range(9):
            assert do_well(breaker) is None
        assert fail(breaker, f"t{task}") is None
    assert state_of(breaker) is State.CLOSED


def test_more_retries_than_the_budget_has_open_it(breaker: Breaker) -> None:
    """A third of the answers are failures: not half of them, but so many retries add a third to the load."""
    said = None
    for task in range(1000):
        do_well(breaker)
        do_well(breaker)
        if said := fail(breaker, f"t{task}"):
            break
    assert said is Why.RETRIES
    assert task + 1 > RETRIES_FREE + RETRY_SHARE * 3 * (task + 1)


def test_after_a_pause_one_good_answer_closes_it(breaker: Breaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now_s += FIRST_PAUSE_S - 0.01
    assert state_of(breaker) is State.OPEN
    clock.now_s += 0.01
    assert state_of(breaker) is State.HALF_OPEN
    assert do_well(breaker) is None
    assert state_of(breaker) is State.CLOSED


def test_a_failed_probe_opens_it_for_longer_each_time_up_to_a_limit(breaker: Breaker, clock: Clock) -> None:
    open_it(breaker)
    pauses, pause_s = [], FIRST_PAUSE_S
    for _ in range(10):
        opened_s = clock.now_s
        while state_of(breaker) is State.OPEN:
            clock.now_s += 0.25
        pauses.append(clock.now_s - opened_s)
        assert fail(breaker, "probe") is Why.PROBE
    assert pauses[:4] == [pause_s, 2 * pause_s, 4 * pause_s, 8 * pause_s]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_what_cannot_be_connected_to_is_tried_often_however_long_it_is_away(breaker: Breaker, clock: Clock) -> None:
    for _ in range(10):
        assert breaker.answered("t", breaker.began(), failed=True, unreached=True) is Why.UNREACHED
        clock.now_s += LONGEST_UNREACHED_S
        assert state_of(breaker) is State.HALF_OPEN


def test_the_first_failure_after_a_long_absence_does_not_count_as_one_of_many(breaker: Breaker, clock: Clock) -> None:
    """A server that is started again refuses connections, then says for a while that it loads its model."""
    for _ in range(10):
        assert breaker.answered("t", breaker.began(), failed=True, unreached=True) is Why.UNREACHED
        clock.now_s += LONGEST_UNREACHED_S
    assert fail(breaker, "t") is Why.PROBE
    clock.now_s += 2 * LONGEST_UNREACHED_S
    assert state_of(breaker) is State.HALF_OPEN


@given(st.floats(0, 1))
def test_workers_of_one_upstream_do_not_come_back_together(jitter: float) -> None:
    clock = Clock()
    breaker = Breaker(clock, lambda: jitter)
    open_it(breaker)
    clock.now_s += FIRST_PAUSE_S * (1 + jitter) / 2 - 0.001
    assert state_of(breaker) is State.OPEN
    clock.now_s += 0.002
    assert state_of(breaker) is State.HALF_OPEN


def test_an_upstream_that_comes_and_goes_is_left_longer_until_it_was_calm(breaker: Breaker, clock: Clock) -> None:
    for pause_s in (FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S):
        open_it(breaker)
        clock.now_s += pause_s - 0.01
        assert state_of(breaker) is State.OPEN
        clock.now_s += 0.01
        do_well(breaker)
        assert state_of(breaker) is State.CLOSED
        clock.now_s += BUDGET_S
    clock.now_s += CALM_S
    open_it(breaker)
    clock.now_s += FIRST_PAUSE_S
    assert state_of(breaker) is State.HALF_OPEN


def test_answers_to_what_was_begun_before_it_opened_decide_nothing(breaker: Breaker, clock: Clock) -> None:
    before = breaker.began()
    open_it(breaker)
    assert breaker.answered("old", before, failed=True) is None
    assert breaker.answered("old", before, failed=False) is None
    assert state_of(breaker) is State.OPEN
    clock.now_s += FIRST_PAUSE_S
    assert breaker.answered("old", before, failed=True) is None
    assert breaker.answered("old", before, failed=False) is None
    assert state_of(breaker) is State.HALF_OPEN


def test_a_probe_without_an_answer_is_followed_by_another(breaker: Breaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now_s += FIRST_PAUSE_S
    breaker.began()
    assert state_of(breaker) is State.HALF_OPEN
    assert do_well(breaker) is None
    assert state_of(breaker) is State.CLOSED


def test_the_budget_forgets_what_is_past_its_window(clock: Clock) -> None:
    budget = RetryBudget(clock)
    for _ in range(RETRIES_FREE + 1):
        budget.retried()
    assert budget.left == -1
    clock.now_s += BUDGET_S
    assert budget.left == RETRIES_FREE


@given(st.lists(st.tuples(st.sampled_from(["well", "fail", "wait"]), st.integers(1, 10)), max_size=200))
def test_it_never_closes_but_by_a_probe_and_its_window_is_bounded(moves: list[tuple[str, int]]) -> None:
    clock = Clock()
    breaker = Breaker(clock, lambda: 0.5)
    for what, count in moves:
        before = breaker.state
        if what == "wait":
            clock.now_s += count
        elif before is not State.OPEN:
            said = do_well(breaker) if what == "well" else fail(breaker, f"t{count}")
            assert (said is not None) == (state_of(breaker) is State.OPEN)
        after = state_of(breaker)
        if after is State.CLOSED and before is not State.CLOSED:
            assert (before, what) == (State.HALF_OPEN, "well")
        assert len(breaker._answers) <= WINDOW
