"""The room a worker has for tasks, of each lane: its engine's slots, less what the limiter and the breaker close."""

import logging
import random
from collections.abc import Callable

from services.inference import metrics
from services.inference.breaker import Breaker, State
from services.inference.capacity import Decrease, Limiter, ceilings
from services.inference.ending import RETRIED
from services.inference.engine import Engine
from services.inference.run import Parting
from services.inference.scripts import NO_SLOTS, Slots
from shared.clock import monotonic_s
from shared.config import Config
from shared.lifecycle import Lane

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""Between two looks at the engine. They cost microseconds; the limiter takes four of them for a signal that stands."""
REFUSALS = frozenset({429, 503})
"""For load; the other answers that are tried again tell of no load."""
UPSTREAM_OPEN = Parting("none", "upstream_open")


class Room:
    def __init__(
        self,
        engine: Engine,
        config: Config,
        *,
        clock: Callable[[], float] = monotonic_s,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._engine, self._config = engine, config
        self._limiter = Limiter(self._ceilings(engine.capacity().slots), clock)
        self._breaker = Breaker(clock, jitter) if engine.remote else None
        """What runs in this process is not up or down by itself: when it dies, so does the worker."""
        self._stays: dict[str, tuple[Lane, int]] = {}
        """Lane, and generation of the breaker, of what the engine has."""
        self._preemptions = 0
        self.on_change: Callable[[], None] = lambda: None
        """Called when there is suddenly less room: the scheduler should know at once."""

    @property
    def slots(self) -> Slots:
        if not self._engine.capacity().slots:
            return NO_SLOTS
        match self._breaker.state if self._breaker else State.CLOSED:
            case State.OPEN:
                return NO_SLOTS
            case State.HALF_OPEN:
                return self._one_more()
            case State.CLOSED:
                return self._limiter.slots

    @property
    def closed(self) -> bool:
        """The engine is not to be given anything."""
        open_ = self._breaker is not None and self._breaker.state is State.OPEN
        return open_ or not self._engine.capacity().slots

    @property
    def breaker(self) -> State | None:
        """None: the engine has none. One whose upstreams all rest is as good as open."""
        if self._breaker is None:
            return None
        return State.OPEN if self.closed else self._breaker.state

    def began(self, task_id: str, lane: Lane) -> None:
        self._limiter.began(task_id, lane)
        self._stays[task_id] = lane, self._breaker.began() if self._breaker else 0

    def answered(self, task_id: str, status: int, *, unreached: bool = False) -> bool:
        """Take note of the engine's answer; whether its failure, if it is one, is to be charged to the task.

        `unreached`: the engine was not asked, and has taken back its slots by itself.
        """
        failed = status in RETRIED
        if status in REFUSALS:
            self._note(self._limiter.refused(task_id))
        if not failed:
            self._limiter.ended(task_id, well=True)
        elif unreached or not self._engine.capacity().slots:  # upstreams rest
            self.on_change()
        if self._breaker is None or unreached:
            return not unreached
        generation = self._stays[task_id][1]
        charged = generation == self._breaker.generation
        if why := self._breaker.answered(task_id, generation, failed=failed):
            log.warning("the engine gets nothing for a while: too many %s", why)
            metrics.OPENED.labels(why).inc()
            self.on_change()
        return charged

    def left(self, task_id: str) -> None:
        self._limiter.ended(task_id, well=False)
        self._stays.pop(task_id, None)

    def look(self) -> None:
        """At the engine and at the policy; to be called every LOOK_S."""
        capacity = self._engine.capacity()
        self._note(self._limiter.look(capacity, self._ceilings(capacity.slots)))
        metrics.KV_USE.set(capacity.kv_use)
        metrics.WAITING_INSIDE.set(capacity.waiting)
        metrics.PREEMPTIONS.inc(max(0, capacity.preemptions - self._preemptions))
        self._preemptions = capacity.preemptions
        if self._breaker is not None:
            metrics.BREAKER.set(list(State).index(self.breaker or State.CLOSED))
            metrics.RETRY_BUDGET.set(self._breaker.budget.left)

    def _one_more(self) -> Slots:
        """One probe, beside what the engine still has from before."""
        assert self._breaker is not None
        now = self._breaker.generation
        before = [lane for lane, generation in self._stays.values() if generation != now]
        batch = before.count(Lane.BATCH) + 1
        normal = before.count(Lane.NORMAL) + batch
        return Slots(len(before) + 1, normal, batch)

    def _ceilings(self, slots: int) -> Slots:
        return ceilings(slots, {lane: rule.slots for lane, rule in self._config.policy.lanes.items()})

    def _note(self, decrease: Decrease | None) -> None:
        if decrease is not None:
            log.info("fewer tasks at once, %s: %s", decrease.signal, self._limiter.slots)
            metrics.DECREASES.labels(decrease.lane, decrease.signal).inc()
            self.on_change()
