"""A circuit breaker for an engine over HTTP, its upstream: while that is down or overloaded, it is left in peace.

    closed ──too many failures, or retries──> open ──pause──> half open ──probe answered well──> closed
                                               ^                  └──────probe failed──────────┐
                                               └───────────────────────────────────────────────┘

Open, the worker takes nothing, and tasks that fail because they were begun before go back without being charged: the fault
is not theirs. Half open, it takes one task as a probe.

A failed probe is charged to its task. Otherwise a task that breaks its upstream by itself would be the probe for ever. What could
not even be connected to opens it at once, and nobody is charged: no task has anything to do with that.
"""

import random
from collections import deque
from collections.abc import Callable
from enum import StrEnum

WINDOW = 20
"""Answers looked at. More reacts later, fewer opens on chance."""
FAILED_SHARE = 0.5
FAILED_TASKS = 5
"""Different tasks that have failed among them: the retries of one bad task open nothing."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Doubled each time, with jitter over its upper half, so that workers of one upstream do not come back together."""
LONGEST_UNREACHED_S = 5.0
"""The same for what could not be connected to: to knock costs an upstream nothing, and all its tasks wait for its return."""
CALM_S = 60.0
"""Closed for so long, the pauses start small again: an upstream that comes and goes is asked less and less often."""

BUDGET_S = 10
"""The budget holds in every window of so many seconds."""
RETRY_SHARE = 0.2
RETRIES_FREE = 10
"""Retries are at most this share of the starts, and so many on top, which lets a worker with little to do retry at all.
Source: Finagle's RetryBudget, with its defaults."""


class State(StrEnum):
    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Why(StrEnum):
    """What opened the breaker."""

    FAILURES = "failures"
    RETRIES = "retries"
    PROBE = "probe"
    UNREACHED = "unreached"

    @property
    def told(self) -> str:
        return "it could not be connected to" if self is Why.UNREACHED else f"too many {self}"


class RetryBudget:
    """Counts by second, so that it costs the same at any rate."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: deque[list[int]] = deque()
        """[second, starts, retries], the oldest first."""

    @property
    def left(self) -> float:
        """Retries that may still be caused; below 0: too many were."""
        self._forget()
        starts, retries = sum(one[1] for one in self._seconds), sum(one[2] for one in self._seconds)
        return RETRIES_FREE + RETRY_SHARE * starts - retries

    def started(self) -> None:
        self._second()[1] += 1

    def retried(self) -> None:
        self._second()[2] += 1

    def _second(self) -> list[int]:
        second = self._forget()
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0])
        return self._seconds[-1]

    def _forget(self) -> int:
        second = int(self._clock())
        while self._seconds and self._seconds[0][0] <= second - BUDGET_S:
            self._seconds.popleft()
        return second


class Breaker:
    """`generation` counts the changes of state. An answer to a task of an earlier one decides nothing."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float] = random.random) -> None:
        """`clock`: seconds, of any beginning; `jitter`: 0 to 1."""
        self._clock, self._jitter = clock, jitter
        self._state = State.CLOSED
        self._answers: deque[tuple[str, bool]] = deque(maxlen=WINDOW)
        """(task, failed)"""
        self._pauses = 0
        self._since_s = self._over_s = clock()
        """When the state began, and when its pause is over."""
        self.generation = 0
        self.budget = RetryBudget(clock)

    @property
    def state(self) -> State:
        self._end_pause()
        return self._state

    def began(self) -> int:
        """A task is given to the engine, which is not to be done while open: the generation that its answer belongs to."""
        self._end_pause()
        self.budget.started()
        return self.generation

    def answered(self, task_id: str, generation: int, *, failed: bool, unreached: bool = False) -> Why | None:
        """What has opened the breaker, if this answer did."""
        state = self.state
        if generation != self.generation:
            return None
        if failed:
            self.budget.retried()
        if unreached:
            return self._open(Why.UNREACHED)
        if state is State.HALF_OPEN:
            if failed:
                return self._open(Why.PROBE)
            self._enter(State.CLOSED)
            return None
        self._answers.append((task_id, failed))
        if not failed:
            return None
        if self.budget.left < 0:
            return self._open(Why.RETRIES)
        failures = [task for task, failed in self._answers if failed]
        if len(failures) >= FAILED_SHARE * len(self._answers) and len(set(failures)) >= FAILED_TASKS:
            return self._open(Why.FAILURES)
        return None

    def _end_pause(self) -> None:
        if self._state is State.OPEN and self._clock() >= self._over_s:
            self._enter(State.HALF_OPEN)

    def _open(self, why: Why) -> Why:
        if self._state is State.CLOSED and self._clock() - self._since_s >= CALM_S:
            self._pauses = 0
        longest_s = LONGEST_UNREACHED_S if why is Why.UNREACHED else LONGEST_PAUSE_S
        pause_s = FIRST_PAUSE_S * 2**self._pauses
        if pause_s < longest_s:
            self._pauses += 1
        self._enter(State.OPEN)
        self._over_s = self._since_s + min(longest_s, pause_s) * (1 + self._jitter()) / 2
        return why

    def _enter(self, state: State) -> None:
        self._state, self._since_s = state, self._clock()
        self.generation += 1
        self._answers.clear()
