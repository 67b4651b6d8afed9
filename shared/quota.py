"""Rates of tenants and API keys: requests a second and tokens a minute, over all pools and replicas.

A task reserves one request and the most tokens it may use before it is submitted. At its end it settles: what it did not use
is given back. A reservation is known by the task's id, so that a repeat takes nothing twice; it is looked at again after a
while (services/scheduler/quota_sweep.py), so that none is forgotten whose submitter died.

The windows slide, in buckets of a fiftieth (requests) or a sixtieth (tokens). A bucket counts until all of it has left the
span, so a limit is never exceeded in any span, and is reached to 2 %. Rejected: token buckets, which let twice the limit pass in
one span; windows of API keys in slots of their own, which no single script could hold together with their tenant's.
"""

import logging
import math
from collections.abc import Sequence
from weakref import WeakValueDictionary

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from shared.bus.batch import Batcher
from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.script import Script
from shared.clock import monotonic_s, now_ms
from shared.config import Config
from shared.errors import (
    BusError,
    CommandRefused,
    RateLimited,
    RequestError,
    TokenRateLimited,
    TokensOverLimit,
    WrongKeyType,
)
from shared.keys import METERED, quota
from shared.lifecycle import Lane
from shared.messages import Task
from shared.policy import Rates

log = logging.getLogger(__name__)

TAKE = Script("shared", "take")
SETTLE = Script("shared", "settle")

MINUTE_MS = 60_000
REQUEST_BUCKETS, TOKEN_BUCKETS = 50, 60
FIRST_LOOK_MS = 30_000
"""Three times as long as a submitter tries: by then its task is there, or is not going to come."""
LOOK_MS = 300_000
"""Between the looks at a task that goes on. Its end settles it; the looks only bound what a lost end costs."""
KEPT_MS = 3 * LOOK_MS
"""After the last word of a tenant's reservations: they are gone though no scheduler runs."""
NOTED_S = 60.0
"""How often a process says that a tenant has reservations."""
NOTES = 10_000
"""Tenants that a process remembers to have noted."""

UNMETERED = Rates()


class Taking(Struct, frozen=True):
    """The arguments of one task of `take.lua`, in its order."""

    id: str
    tokens: int


class Settling(Struct, frozen=True):
    """The arguments of one task of `settle.lua`, in its order."""

    id: str
    tokens: int | str
    """Used; '': the task goes on."""


class Window(Struct, frozen=True, array_like=True):
    limit: int
    """0: none."""
    length_ms: int
    width_ms: int


def request_window(per_s: float) -> Window:
    """At least one request and one second: 0.2 a second is one in five seconds, 2.5 are three in 1.2 seconds."""
    if not per_s:
        return Window(0, 1000, 100)
    most = math.ceil(per_s)
    length_ms = math.ceil(most / per_s * 1000)
    return Window(most, length_ms, math.ceil(length_ms / REQUEST_BUCKETS))


def token_window(per_min: int) -> Window:
    return Window(per_min, MINUTE_MS, MINUTE_MS // TOKEN_BUCKETS)


def windows_of(*rates: Rates) -> list[Window]:
    return [window(rate) for rate in rates for window in (_requests, _tokens)]


def _requests(rates: Rates) -> Window:
    return request_window(rates.requests_per_s)


def _tokens(rates: Rates) -> Window:
    return token_window(rates.tokens_per_min)


class Quotas:
    """Takes and settles for all tenants, gathered into one script call for each tenant and API key."""

    def __init__(self, bus: Bus, config: Config) -> None:
        self._bus, self._config = bus, config
        # Kept by whoever waits for a verdict: tenants come and go, and their number is not bounded.
        self._taking: WeakValueDictionary[tuple[str, str, bool], Batcher[Taking, bool | RequestError]] = (
            WeakValueDictionary()
        )
        self._settling: WeakValueDictionary[str, Batcher[Settling, str]] = WeakValueDictionary()
        self._noted_s: dict[str, float] = {}

    def rates(self, tenant: str, key: str) -> tuple[Rates, Rates]:
        """Of the tenant, and of the API key."""
        policy = self._config.policy
        return policy.tenant(tenant), policy.keys.get(key, UNMETERED) if key else UNMETERED

    def limits(self, task: Task) -> bool:
        """Whether any rate holds for the task. The lane batch has an allowance of waiting tokens instead."""
        return task.lane is not Lane.BATCH and any(rates.any for rates in self.rates(task.tenant, task.key))

    def check(self, task: Task, tokens: int) -> None:
        """Whether it could ever be accepted: for tasks that wait for their turn. Raises: TokensOverLimit."""
        if self.limits(task):
            for number, rates in enumerate(self.rates(task.tenant, task.key)):
                if 0 < rates.tokens_per_min < tokens:
                    raise TokensOverLimit(_who(task.tenant, task.key, number), rates.tokens_per_min, tokens)

    async def take(self, task: Task, task_id: str, tokens: int, *, asked_before: bool = False) -> bool:
        """Reserve a request and `tokens`. True: by this call; False: before, or no rate holds for it.

        `asked_before`: another pool has refused the request, which counts once.

        Raises: RateLimited, TokensOverLimit, WrongKeyType, BusUnavailable.
        """
        if not self.limits(task):
            return False
        await self._note(task.tenant)
        taking = self._taker(task.tenant, task.key, asked_before)
        verdict = await taking.add(Taking(task_id, tokens))
        if isinstance(verdict, RequestError):
            raise verdict
        return verdict

    async def settle(self, tenant: str, task_id: str, tokens: int) -> None:
        """The task has ended, and used `tokens`. Harmless when repeated or unknown. Raises: WrongKeyType, BusUnavailable."""
        settling = self._settler(tenant)
        await settling.add(Settling(task_id, tokens))

    async def put_off(self, tenant: str, task_id: str) -> None:
        """The task goes on: look at it again later. Raises: WrongKeyType, BusUnavailable."""
        settling = self._settler(tenant)
        await settling.add(Settling(task_id, ""))

    # -- parts

    async def _note(self, tenant: str) -> None:
        """Where the sweeper finds the tenant. A full Redis refuses it, and must not keep a task from draining for that."""
        if monotonic_s() - self._noted_s.get(tenant, -NOTED_S) < NOTED_S:
            return
        if len(self._noted_s) >= NOTES:
            self._noted_s.clear()
        self._noted_s[tenant] = monotonic_s()
        try:
            await self._bus.commands.call("ZADD", METERED, "GT", now_ms(), tenant)
        except BusError as error:
            self._noted_s.pop(tenant, None)
            if not isinstance(error, CommandRefused):
                raise
            log.warning("cannot note that %s has reservations: %s", tenant, error)

    def _taker(self, tenant: str, key: str, asked_before: bool) -> Batcher[Taking, bool | RequestError]:
        taking = self._taking.get((tenant, key, asked_before))
        if taking is None:

            async def run(items: Sequence[Taking]) -> Sequence[bool | RequestError]:
                return await self._take(tenant, key, asked_before, items)

            taking = self._taking[tenant, key, asked_before] = Batcher(run)
        return taking

    def _settler(self, tenant: str) -> Batcher[Settling, str]:
        settling = self._settling.get(tenant)
        if settling is None:

            async def run(items: Sequence[Settling]) -> Sequence[str]:
                return await settle(self._bus, tenant, items)

            settling = self._settling[tenant] = Batcher(run)
        return settling

    async def _take(
        self, tenant: str, key: str, asked_before: bool, items: Sequence[Taking]
    ) -> list[bool | RequestError]:
        rates = self.rates(tenant, key)
        counted = [msgspec.structs.replace(rate, requests_per_s=0.0) for rate in rates] if asked_before else rates
        verdicts = await take(self._bus, tenant, key, windows_of(*counted), items)
        return [
            verdict == "taken" if verdict in ("taken", "known") else _refusal(tenant, key, rates, verdict, item)
            for item, verdict in zip(items, verdicts, strict=True)
        ]


async def take(bus: Bus, tenant: str, key: str, windows: Sequence[Window], items: Sequence[Taking]) -> list[str]:
    """The twin of take.lua: one verdict per task. Raises: WrongKeyType, BusUnavailable."""
    names = [quota(tenant, what) for what in ("reserved", "looks", "requests", "tokens")]
    names += [quota(tenant, f"{what}:{key}") for what in ("requests", "tokens")]
    args: list[Arg] = [msgspec.json.encode(windows), key, FIRST_LOOK_MS, KEPT_MS]
    for item in items:
        args += astuple(item)
    return _told(await bus.run(TAKE, names, args))


async def settle(bus: Bus, tenant: str, items: Sequence[Settling]) -> list[str]:
    """The twin of settle.lua: one verdict per task. Raises: WrongKeyType, BusUnavailable."""
    names = [quota(tenant, what) for what in ("reserved", "looks", "tokens")]
    window = token_window(0)
    args: list[Arg] = [quota(tenant, "tokens:"), window.length_ms, window.width_ms, LOOK_MS, KEPT_MS]
    for item in items:
        args += astuple(item)
    return _told(await bus.run(SETTLE, names, args))


async def overdue(bus: Bus, tenant: str, at_ms: int, most: int) -> list[str]:
    """Tasks whose reservations are to be looked at. Raises: BusError."""
    found = await bus.commands.call("ZRANGEBYSCORE", quota(tenant, "looks"), "-inf", at_ms, "LIMIT", 0, most)
    return [task_id.decode() for task_id in found]


def _told(verdicts: Sequence[bytes]) -> list[str]:
    told = [verdict.decode() for verdict in verdicts]
    for verdict in told:
        if verdict.startswith("wrongtype"):
            raise WrongKeyType(f"the key {verdict.partition(' ')[2]} holds a type that is not Headrace's; remove it")
    return told


def _refusal(tenant: str, key: str, rates: tuple[Rates, Rates], verdict: str, item: Taking) -> RequestError:
    """`over <window> <used> <wait, ms>` or `never <window>`, windows counted from 1."""
    word, *numbers = verdict.split()
    place, of_tokens = divmod(int(numbers[0]) - 1, 2)
    who, rate = _who(tenant, key, place), rates[place]
    if word == "never":
        return TokensOverLimit(who, rate.tokens_per_min, item.tokens)
    window = windows_of(rate)[of_tokens]
    kind, limit = (TokenRateLimited, rate.tokens_per_min) if of_tokens else (RateLimited, rate.requests_per_s)
    return kind(who, limit, window.limit, int(numbers[1]), window.length_ms / 1000, int(numbers[2]))


def _who(tenant: str, key: str, place: int) -> str:
    return f"The API key {key}" if place else f"The tenant {tenant}"
