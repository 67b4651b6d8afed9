"""The upstreams of a pool: which one is asked, and which are left alone.

Of those that have room the one with the smallest share of its slots in use is asked. What room an upstream has, it says by its
answers, as an engine of this process says it by its figures:
    refusals for load     cut its slots as capacity.py does, and growth is as slow;
    Retry-After           it rests, for as long as it asks;
    failures              its breaker opens (breaker.py): it rests, then gets one call as a probe;
    no connection         its breaker opens at once.

The breaker of room.py watches the same answers for the pool as a whole, after another upstream was tried. With one upstream the
two are one in effect; with several the worker takes tasks as long as one of them serves.
"""

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from services.inference import metrics
from services.inference.breaker import Breaker, State
from services.inference.capacity import Limiter
from services.inference.ending import RETRIED
from services.inference.room import REFUSALS
from services.inference.scripts import Slots
from shared.clock import monotonic_s
from shared.engine_options import Upstream as Options
from shared.errors import ConfigError
from shared.lifecycle import Lane

log = logging.getLogger(__name__)

LONGEST_REST_S = 60.0
"""That one refusal can ask for, as the breaker's longest pause. The refused task itself waits for as long as it was told."""
KEY_READ_S = 1.0
"""Between two looks at a key file: a key that is replaced is in use after so long."""


class Key:
    """The API key that a file holds. It is in no message and no log."""

    def __init__(self, path: str, clock: Callable[[], float] = monotonic_s) -> None:
        """Raises: ConfigError."""
        self._path, self._clock = Path(path), clock
        self._seen: tuple[int, int, int] | None = None
        self._looked_s = clock()
        self._value = self._read()

    @property
    def value(self) -> str:
        """As the file has it; should it be gone or empty meanwhile, as it had it last."""
        if self._clock() - self._looked_s >= KEY_READ_S:
            self._looked_s = self._clock()
            try:
                self._value = self._read()
            except ConfigError as error:
                log.error("%s; the key that it held is used on", error)
        return self._value

    def _read(self) -> str:
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen == self._seen:
                return self._value
            said = self._path.read_bytes().decode(errors="replace").strip()
        except OSError as error:
            raise ConfigError(f"key_file {self._path} cannot be read: {error.strerror}") from None
        if not (said and said.isascii() and said.isprintable()) or " " in said:
            raise ConfigError(
                f"key_file {self._path} must hold an API key, in one word of printable ASCII, and nothing else"
            )
        self._seen = seen
        return said


class Upstream:
    """One call of a task at a time: they are counted by its id."""

    def __init__(
        self,
        index: int,
        options: Options,
        *,
        clock: Callable[[], float] = monotonic_s,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Raises: ConfigError."""
        self.name = f"upstreams[{index}]"
        """For messages that clients read: what it is called inside concerns nobody."""
        self.url, self.model = options.url.rstrip("/"), options.model
        self.key = Key(options.key_file, clock) if options.key_file else None
        self._slots, self._clock = options.slots, clock
        self._limiter = Limiter(Slots(options.slots, options.slots, options.slots), clock)
        self._breaker = Breaker(clock, jitter)
        self._calls: dict[str, int] = {}
        """Generation of the breaker, by task."""
        self._rest_over_s = clock()

    def address(self, route: str) -> str:
        """Of a route as we call it: /v1/… is what an openai client puts behind its base_url, others lie beside it."""
        base = self.url if urlsplit(self.url).path else f"{self.url}/v1"
        return base + route[3:] if route.startswith("/v1/") else base.removesuffix("/v1") + route

    @property
    def slots(self) -> int:
        """Calls that it takes at once."""
        if self._clock() < self._rest_over_s:
            return 0
        match self._breaker.state:
            case State.OPEN:
                return 0
            case State.HALF_OPEN:
                now = self._breaker.generation
                return 1 + sum(generation != now for generation in self._calls.values())
            case State.CLOSED:
                return self._limiter.slots.total

    @property
    def running(self) -> int:
        return len(self._calls)

    @property
    def has_room(self) -> bool:
        return self.running < self.slots

    @property
    def use(self) -> float:
        """Share of its slots."""
        return self.running / self._slots

    def began(self, task_id: str) -> None:
        self._limiter.began(task_id, Lane.INTERACTIVE)
        self._calls[task_id] = self._breaker.began()

    def answered(self, task_id: str, status: int, rest_s: float = 0.0, *, unreached: bool = False) -> None:
        """`rest_s`: what it asks to be left alone for."""
        failed = status in RETRIED
        if status in REFUSALS:
            self._limiter.refused(task_id)
            self._rest_over_s = max(self._rest_over_s, self._clock() + min(rest_s, LONGEST_REST_S))
        if not failed:
            self._limiter.ended(task_id, well=True)
        generation = self._calls[task_id]
        if why := self._breaker.answered(task_id, generation, failed=failed, unreached=unreached):
            log.warning("%s (%s) gets nothing for a while: %s", self.name, self.url, why.told)
            metrics.UPSTREAM_OPENED.labels(self.url, why).inc()
        metrics.UPSTREAM_CALLS.labels(self.url, _outcome(status)).inc()

    def left(self, task_id: str) -> None:
        """The call is over, whether it was answered or not."""
        self._limiter.ended(task_id, well=False)
        del self._calls[task_id]


def best(upstreams: Sequence[Upstream]) -> Upstream | None:
    """None: there is none with room."""
    return min(
        (upstream for upstream in upstreams if upstream.has_room), key=lambda upstream: upstream.use, default=None
    )


def _outcome(status: int) -> str:
    if status in REFUSALS:
        return "refused"
    return "failed" if status in RETRIED else "ok" if status < 400 else "faulty"
