"""Webhooks out: deliveries of all shards, worked off by all replicas together, each at least once with one `webhook-id`.

Problem. A receiver may answer at once, after 15 s, with an error for hours, or never again; the tasks of an hour may owe it 50,000
events. None of that may delay another receiver, fill memory, or lose an event when a replica is killed.

How a delivery goes
  - The outbox reader, the scheduler of a batch, or who requeues a dead letter, adds it to the stream `hr:{webhooks}`; a replica
    reads it in the group `webhooks` and tries it at once.
  - Its entry stays pending while it is tried, and is acknowledged after the 2xx. Who was killed in between leaves it pending:
    another replica takes it over (shared/bus/consume.py), and the receiver gets the same `webhook-id` again.
  - After a failure it goes to the zset `hr:{webhooks}:later`, in one step with the acknowledgement, and back when it is due.
  - After the last try, and where no try can help, it becomes a dead letter.

Invariants
  - A delivery is in the stream, in `later`, or a dead letter, until it has arrived. Nothing is only in memory.
  - The handler never waits for a receiver. What there is no room for goes to `later`, and is not charged with a try.
  - Entries that are held are claimed again before they look abandoned.

Rejected: acknowledging before the request, with a lease in `later` (two more writes for each delivery that just works); a
breaker in Redis that replicas share (each finds out with five requests, and a mistake of one stops no other).
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Sequence
from enum import StrEnum
from types import TracebackType
from typing import Self

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from services.notifier import metrics
from services.notifier.post import LONGEST_WAIT_S, Answer, Forbidden, Post, Unanswered
from services.notifier.receivers import TENANT_HELD, TENANT_SLOTS, Receiver, Receivers, pause_s
from services.notifier.scripts import promote, put_off
from services.notifier.webhook_body import ended_as, read_body, subject_of
from shared import keys
from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.consume import Consumer, Entry
from shared.bus.script import MAX_ITEMS
from shared.bus.streams import append
from shared.clock import monotonic_s, now_ms
from shared.config import Config
from shared.errors import BusError, ConfigError, InvalidTaskId
from shared.ids import place_of
from shared.keys import ShardKeys, keys_of, shard_keys
from shared.messages import Delivery, decode_delivery, encode
from shared.periodic import Periodic
from shared.webhooks import Destination, destination, gone_mark, read_secrets, sign

log = logging.getLogger(__name__)

PER_READ = 100
PAUSES_S = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0)
"""Before each further try, at most: the schedule of the specification. Drawn between 0 and that, so together about a day."""
UPKEEP_S = 0.5
"""Between looks at what is due. The first pause is seconds, so this adds little to it."""
CLAIM_S = 1.5
"""Between claims of what is held: three are missed before another replica takes it (consume.RECLAIM_AFTER_MS)."""
MOST_HELD = 10_000
"""Of all receivers. Each is a small object that waits; those with a request under way also have its body."""
GONE_MS = 24 * 3600 * 1000
"""How long nothing is sent to who answered 410, unless an operator requeues a dead letter of it."""
DEAD_KEPT = 10_000
"""Dead letters of a shard; older ones go."""
STOP_S = 5.0
"""For requests under way when the replica stops. The others take over what it leaves."""


class Outcome(StrEnum):
    """Of one try; also the label of the metric."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    """An answer other than 2xx."""
    UNANSWERED = "unanswered"
    RESTING = "resting"
    """Not tried: the receiver has failed or asked for time."""
    FULL = "full"
    """Not tried: the receiver, or its crowd, has enough under way. The only one that is not charged."""
    UNSIGNED = "unsigned"
    """The configuration names no such place any more, or its secret cannot be read."""
    FORBIDDEN = "forbidden"
    GONE = "gone"


HOPELESS = {Outcome.FORBIDDEN: "webhook_forbidden", Outcome.GONE: "webhook_gone"}
"""Outcomes that no further try changes, and the code of their dead letters."""


class Tried(Struct, frozen=True):
    outcome: Outcome
    why: str = ""
    wait_s: float = 0.0
    """At least until the next try."""


class Webhooks:
    def __init__(self, bus: Bus, config: Config, replica: str, post: Post | None = None) -> None:
        self._bus, self._config, self._replica = bus, config, replica
        self._post = post or Post(lambda: config.policy.webhooks.allow_private)
        self._receivers = Receivers(monotonic_s)
        self._crowds = Receivers(monotonic_s, TENANT_SLOTS, TENANT_HELD)
        self._held: dict[bytes, asyncio.Task[None]] = {}
        self._claim_at_s = 0.0
        self.consumer = Consumer(
            bus, stream=keys.WEBHOOKS, group=keys.SENDERS, name=replica, handle=self.on_entries, count=PER_READ
        )
        self.upkeep = Periodic("webhooks", UPKEEP_S, self._keep_up)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is under way may end; what is not stays pending, for the other replicas."""
        if self._held:
            await asyncio.wait(self._held.values(), timeout=STOP_S)
        for task in list(self._held.values()):
            task.cancel()
        await asyncio.gather(*self._held.values(), return_exceptions=True)
        await self._post.close()

    async def on_entries(self, entries: list[Entry]) -> Sequence[bytes]:
        """Only what nobody can read is done at once: each delivery acknowledges its own entry."""
        done = []
        for entry in entries:
            if entry.id in self._held:  # it came again because it is pending, as it must be
                continue
            delivery = read_delivery(entry)
            if delivery is None:
                done.append(entry.id)
                continue
            self._held[entry.id] = asyncio.create_task(self._deliver(entry.id, delivery))
        return done

    # -- upkeep

    async def _keep_up(self) -> None:
        """Raises: BusError."""
        if self._held and monotonic_s() >= self._claim_at_s:
            await self._claim(list(self._held))
            self._claim_at_s = monotonic_s() + CLAIM_S
        promoted = await promote(self._bus)
        while promoted.tried == MAX_ITEMS and len(self._held) < MOST_HELD:
            promoted = await promote(self._bus)
        metrics.WEBHOOKS_WAITING.set(promoted.waiting)

    async def _claim(self, entries: list[bytes]) -> None:
        claim: list[Arg] = ["XCLAIM", keys.WEBHOOKS, keys.SENDERS, self._replica, 0]
        for first in range(0, len(entries), 500):
            await self._bus.commands.call(*claim, *entries[first : first + 500], "JUSTID")

    # -- one delivery

    async def _deliver(self, entry: bytes, delivery: Delivery) -> None:
        try:
            tried = await self._try(delivery)
            metrics.WEBHOOKS.labels(tried.outcome).inc()
            await self._conclude(entry, delivery, tried)
        except BusError as error:
            log.warning("the delivery %s must wait: %s", delivery.id, error)
        except Exception:  # the entry stays pending, and comes again
            log.exception("the delivery %s failed", delivery.id)
        finally:
            del self._held[entry]

    async def _conclude(self, entry: bytes, delivery: Delivery, tried: Tried) -> None:
        """Raises: BusError."""
        if tried.outcome is Outcome.DELIVERED:
            metrics.WEBHOOK_DELAY.observe(max(0, now_ms() - delivery.at_ms) / 1000)
            await self._clear(entry)
        elif tried.outcome is Outcome.FULL:
            again = replace(delivery, waited=delivery.waited + 1)
            await put_off(self._bus, entry, again, delay_ms=int(tried.wait_s * 1000))
        elif tried.outcome in HOPELESS or delivery.tried >= len(PAUSES_S):
            await self._bury(delivery, tried)
            await self._clear(entry)
        else:
            delay_s = max(tried.wait_s, random.uniform(0, PAUSES_S[delivery.tried]))
            again = replace(delivery, tried=delivery.tried + 1, waited=0)
            log.info("%s (%s): %s; again in %.0f s", delivery.id, delivery.event, tried.why, delay_s)
            await put_off(self._bus, entry, again, delay_ms=int(delay_s * 1000))

    async def _try(self, delivery: Delivery) -> Tried:
        """Raises: BusError."""
        place = destination(self._config.policy, delivery.tenant, delivery.to)
        if place is None:
            return Tried(Outcome.UNSIGNED, "the configuration lets nothing be sent there any more")
        receiver, crowd = self._receivers.of(place.receiver), self._crowds.of(place.crowd)
        if receiver.full or crowd.full or len(self._held) > MOST_HELD:
            return Tried(Outcome.FULL, wait_s=pause_s(delivery.waited))
        receiver.held, crowd.held = receiver.held + 1, crowd.held + 1
        try:
            async with receiver.slots, crowd.slots:  # what waits for a slow receiver takes none from the crowd
                if rest_s := receiver.rest_s:
                    return Tried(Outcome.RESTING, f"{place.shown} is left in peace for a while", rest_s)
                return await self._send(delivery, place, receiver)
        finally:
            receiver.held, crowd.held = receiver.held - 1, crowd.held - 1

    async def _send(self, delivery: Delivery, place: Destination, receiver: Receiver) -> Tried:
        """Raises: BusError."""
        failed, wait_s = None, 0.0
        receiver.begins()
        try:
            body, gone = await asyncio.gather(read_body(self._bus, delivery, self._base_url), self._is_gone(place))
            if gone:
                return Tried(Outcome.GONE, f"{place.shown} has answered 410 within the last day")
            headers = sign(read_secrets(place.secret_file), delivery.id, now_ms() // 1000, body)
            answer = await self._post.send(place.url, headers, body)
            failed = answer.status >= 500 or answer.status == 429
            wait_s = answer.wait_s if answer.status in (429, 503) else 0.0
            return await self._read(answer, place, wait_s)
        except ConfigError as error:
            log.error("a webhook cannot be signed: %s", error)
            return Tried(Outcome.UNSIGNED, "its secret cannot be read")
        except Forbidden as error:
            return Tried(Outcome.FORBIDDEN, f"{place.shown}: {error}")
        except Unanswered as error:
            failed = True
            return Tried(Outcome.UNANSWERED, f"{place.shown}: {error}")
        except BusError:
            raise
        except Exception:  # charged like any other try, or the entry would come again every few seconds for ever
            log.exception("the delivery %s cannot be made", delivery.id)
            return Tried(Outcome.UNANSWERED, f"{place.shown}: a fault of the notifier, which its log tells")
        finally:
            receiver.ends(failed=failed, wait_s=wait_s)

    async def _read(self, answer: Answer, place: Destination, wait_s: float) -> Tried:
        """Raises: BusError."""
        if 200 <= answer.status < 300:
            return Tried(Outcome.DELIVERED)
        why = f"{place.shown} answered {answer.status}"
        if answer.status == 410:
            await self._mark_gone(place)
            return Tried(Outcome.GONE, why)
        return Tried(Outcome.REFUSED, why, min(wait_s * random.uniform(1, 1.1), LONGEST_WAIT_S))

    # -- parts

    @property
    def _base_url(self) -> str:
        return self._config.policy.webhooks.base_url.rstrip("/")

    async def _is_gone(self, place: Destination) -> bool:
        until_ms = await self._bus.commands.call("ZSCORE", keys.WEBHOOKS_GONE, gone_mark(place))
        return until_ms is not None and float(until_ms) > now_ms()

    async def _mark_gone(self, place: Destination) -> None:
        log.warning("%s answered 410: nothing is sent there for a day", place.shown)
        with contextlib.suppress(BusError):  # in a full Redis the next delivery finds out again
            call = self._bus.commands.call
            await call("ZREMRANGEBYSCORE", keys.WEBHOOKS_GONE, "-inf", now_ms())
            await call("ZADD", keys.WEBHOOKS_GONE, now_ms() + GONE_MS, gone_mark(place))

    async def _clear(self, entry: bytes) -> None:
        """Both leave in one write."""
        call = self._bus.commands.call
        await asyncio.gather(
            call("XACK", keys.WEBHOOKS, keys.SENDERS, entry),
            call("XDEL", keys.WEBHOOKS, entry),
        )

    async def _bury(self, delivery: Delivery, tried: Tried) -> None:
        """The letter starts over when it is requeued. Raises: BusError."""
        reason = f"{delivery.event} was not delivered, after {delivery.tried + 1} tries: {tried.why}"
        log.error("%s: %s", delivery.id, reason)
        metrics.WEBHOOKS.labels("dead").inc()
        letter: dict[Arg, Arg] = {
            "k": "webhook",
            "t": delivery.task or subject_of(delivery),
            "code": HOPELESS.get(tried.outcome, "webhook_undeliverable"),
            "reason": reason,
            "tenant": delivery.tenant,
            "delivery": encode(replace(delivery, tried=0, waited=0)),
        }
        await append(self._bus, self._graveyard(delivery).dead, letter, most_kept=DEAD_KEPT)

    def _graveyard(self, delivery: Delivery) -> ShardKeys:
        return keys_of(delivery.task)[0] if delivery.task else shard_keys(next(iter(self._config.pools)), 0)


def read_delivery(entry: Entry) -> Delivery | None:
    """None: it was deleted meanwhile, or nobody of ours wrote it."""
    if not entry.fields:
        return None
    try:
        delivery = decode_delivery(entry.fields[b"delivery"])
        if delivery.task:
            place_of(delivery.task)
            ended_as(delivery)
    except (KeyError, ValueError, msgspec.MsgspecError, RecursionError, InvalidTaskId) as error:
        log.error("the entry %s of %s is no delivery: %r", entry.id, keys.WEBHOOKS, error)
        return None
    return delivery
