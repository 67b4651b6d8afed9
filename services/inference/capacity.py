"""How many tasks a worker takes at once: additive increase, multiplicative decrease, on the engine's own signals.

An engine's slots say how many requests it can batch, not how many its KV cache holds: that depends on their lengths. What
is too much waits inside the engine, where nothing can be overtaken or cancelled cheaply any more, or is preempted and
computed twice. So the engine is kept just short of that, and what waits does so in the backlog.

    all       most tasks at once                 nested, so that the least urgent work pays first: it gives way until it
    normal    of those, normal and batch         holds one task, before the next limit is touched. Growth goes the other
    batch     of those, batch                    way: a limit waits for the more urgent ones that are being felt.

Invariants
  - 1 <= batch <= normal <= all <= slots: nothing starves.
  - At most one decrease a flight: until the tasks that ran at the last one have ended, the signals tell of what was
    already paid for. Bounded by FLIGHT_S, for one of them may run for an hour.
  - A limit that no task has come up against tells nothing, and does not grow.
  - What is cut is what was held, not the limit, which may be far above it; and by half at most.
  - A limit of which less than half is held is not what overloads the engine: refusals then halve the limits, not what is held.

Rejected: halving always (the engine says how many it runs, so an overload by two of forty need not cost twenty); latency as
the signal (a language model's latency is mostly the length of its answers); one gate on a moving figure (it overshoots, or
shuts everybody out when the figure stands still).
"""

from collections import deque
from collections.abc import Callable
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import astuple

from services.inference.engine import Capacity
from services.inference.scripts import Slots
from shared.lifecycle import Lane

STANDING = 4
"""Looks in a row, each at a later step, for which requests must wait or the KV cache be full: a prompt or two that are
computed before others are no queue. More reacts later, fewer takes a burst of prompts for one."""
BUFFER_SHARE = 32
"""One request of so many slots, and one at least, may wait inside: the next is there when one ends."""
HIGH_KV, EASY_KV = 0.95, 0.9
"""Share of the KV cache in use. From the first on the next long answer preempts another; up to the second there is room
for more. Between them all stays as it is, so a steady load finds its level instead of swinging."""
FLIGHT_S = 30.0
"""Longest flight. Shorter cuts twice for one overload; longer leaves a deep queue standing behind long answers."""
WINDOW = 20
"""Answers looked at for refusals, as the breaker does."""
REFUSED_TASKS = 3
"""Different tasks that were refused among them, so more than a tenth of the answers at any load. One or two may be refused for
their own sake (a limit of their user's, say), and one that is tried again and again tells no more than once."""
KEPT = 0.9
"""Of the tasks that the engine runs at a signal: their answers still grow. Less wastes room, more meets the next signal."""
GROWTH_SHARE = 64
"""One flight adds one task of so many slots, and one at least: from nothing to all in as many flights, on any engine."""


class Signal(StrEnum):
    WAITING = "waiting"
    PREEMPTED = "preempted"
    KV_USE = "kv_use"
    REFUSED = "refused"


class Decrease(Struct, frozen=True):
    lane: Lane
    """Whose limit was cut."""
    signal: Signal


class _Limit:
    """Most tasks that `lane` and the less urgent ones may hold together."""

    def __init__(self, lane: Lane, ceiling: int) -> None:
        self.lane, self.ceiling = lane, ceiling
        self.cut: int | None = None
        """None: nothing but the ceiling holds."""
        self.held = 0
        self.felt = False
        """A task that was begun since the last change has reached it."""
        self.ended = 0
        """Tasks that have ended well since it was felt."""

    @property
    def most(self) -> int:
        return self.ceiling if self.cut is None else min(self.cut, self.ceiling)

    def restart(self) -> None:
        self.felt, self.ended = False, 0

    def grow(self, step: int) -> None:
        grown = self.most + step
        self.cut = grown if grown < self.ceiling else None


class Limiter:
    def __init__(self, ceilings: Slots, clock: Callable[[], float]) -> None:
        """`clock`: seconds, of any beginning."""
        self._clock = clock
        ceiling = (ceilings.total, ceilings.normal, ceilings.batch)
        self._limits = [_Limit(lane, most) for lane, most in zip(Lane, ceiling, strict=True)]
        """Most urgent first."""
        self._held: dict[str, Lane] = {}
        self._answers: deque[str] = deque(maxlen=WINDOW)
        """Who was refused; empty: the task was done."""
        self._flight: set[str] = set()
        self._flight_over_s = 0.0
        self._stood = self._steps = self._preemptions = 0
        self._easy = True

    @property
    def slots(self) -> Slots:
        total, normal, batch = (limit.most for limit in self._limits)
        return Slots(total, min(total, normal), min(total, normal, batch))

    def began(self, task_id: str, lane: Lane) -> None:
        self._held[task_id] = lane
        for limit in self._counting(lane):
            limit.held += 1
            limit.felt = limit.felt or limit.held >= limit.most

    def ended(self, task_id: str, *, well: bool) -> None:
        """`well`: the engine has done the task, so as much as ran beside it was not too much."""
        lane = self._held.pop(task_id, None)
        if lane is None:
            return
        counts = well and not self.in_flight
        if counts:
            self._answers.append("")
        self._flight.discard(task_id)
        for limit in self._counting(lane):
            limit.held -= 1
            limit.ended += counts and limit.felt
        if counts and self._easy:
            self._grow()

    def refused(self, task_id: str) -> Decrease | None:
        """The engine has refused a task that is still held, for load. How much would do, it does not say."""
        if self.in_flight:
            return None
        self._answers.append(task_id)
        if len(set(self._answers) - {""}) < REFUSED_TASKS:
            return None
        return self._decrease(Signal.REFUSED, would_do=0)

    def look(self, capacity: Capacity, ceilings: Slots) -> Decrease | None:
        """To be called a few times a second."""
        for limit, ceiling in zip(self._limits, (ceilings.total, ceilings.normal, ceilings.batch), strict=True):
            limit.ceiling = ceiling
        preempted = capacity.preemptions > self._preemptions
        stepped = capacity.steps != self._steps
        self._preemptions, self._steps = capacity.preemptions, capacity.steps
        signal = _signal(capacity)
        self._easy = signal is None and not preempted and capacity.kv_use <= EASY_KV
        self._stood = self._stood + stepped if signal is not None else 0
        if preempted:
            signal = Signal.PREEMPTED
        elif self._stood < STANDING:
            return None
        return self._decrease(signal, would_do=int(capacity.running * KEPT)) if signal is not None else None

    @property
    def in_flight(self) -> bool:
        return bool(self._flight) and self._clock() < self._flight_over_s

    def _decrease(self, signal: Signal, *, would_do: int) -> Decrease | None:
        if self.in_flight:
            return None
        too_many = max(1, len(self._held) - would_do)
        used = below = 0
        for limit, most in zip(reversed(self._limits), reversed(astuple(self.slots)), strict=True):
            # What less urgent lanes still hold over their own limit is on its way out already.
            used, below = min(limit.most, used + limit.held - below), limit.held
            if used > 1:
                if signal is Signal.REFUSED and 2 * used < most:
                    self._halve()
                else:
                    limit.cut = max(used // 2, used - too_many)
                self._restart()
                self._answers.clear()
                self._flight, self._flight_over_s = set(self._held), self._clock() + FLIGHT_S
                return Decrease(limit.lane, signal)
        return None

    def _halve(self) -> None:
        """All limits alike, so that what less urgent lanes leave to the others stays in proportion."""
        for limit in self._limits:
            limit.cut = max(1, limit.most // 2)

    def _grow(self) -> None:
        step = max(1, self._limits[0].ceiling // GROWTH_SHARE)
        for limit in self._limits:
            if limit.cut is not None and limit.felt:
                if limit.ended >= limit.most:
                    limit.grow(step)
                    self._restart()
                return

    def _restart(self) -> None:
        for limit in self._limits:
            limit.restart()
        self._stood = 0

    def _counting(self, lane: Lane) -> list[_Limit]:
        return self._limits[: lane.priority + 1]


def ceilings(slots: int, shares: dict[Lane, float]) -> Slots:
    """Of an engine with `slots`, each lane's share of them; one at least, and no more than the lane before."""
    total, normal, batch = (max(1, int(slots * shares[lane])) for lane in Lane)
    return Slots(total, min(total, normal), min(total, normal, batch))


def _signal(capacity: Capacity) -> Signal | None:
    if capacity.waiting > max(1, capacity.slots // BUFFER_SHARE):
        return Signal.WAITING
    return Signal.KV_USE if capacity.kv_use >= HIGH_KV else None
