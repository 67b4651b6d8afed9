"""What must leave a shard: replies for other systems, to their own streams; what tasks have used, to their tenants' quotas;
news of their ends, to webhooks (services/notifier/webhooks.py delivers them).

The outbox holds ids; all of it is made from the task's hash. At least once: a crash before the acknowledgement writes a reply
again, with the same `event`, a delivery with the same `webhook-id`, and settles again, which changes nothing.
"""

import asyncio
import logging
from collections.abc import Sequence

from services.notifier import metrics
from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.consume import Entry, settle
from shared.bus.streams import append
from shared.chunks import first_text
from shared.errors import BusError, HeadraceError, WrongKeyType
from shared.keys import ShardKeys
from shared.lifecycle import State
from shared.messages import NULL, Delivery, Reply, encode, result_in_json
from shared.quota import Quotas
from shared.record import FIELDS, Record, parse_record
from shared.replies import send_reply
from shared.webhooks import announce, message_id

log = logging.getLogger(__name__)

DEAD_KEPT = 10_000
"""Dead letters of a shard; older ones go."""


class Outbox:
    def __init__(self, bus: Bus, shard: ShardKeys, quotas: Quotas) -> None:
        self._bus, self._shard, self._quotas = bus, shard, quotas

    async def on_entries(self, entries: list[Entry]) -> Sequence[bytes]:
        """Raises: Unfinished, if Redis is out of reach."""
        return settle(entries, await asyncio.gather(*(self._carry_out(entry) for entry in entries)))

    async def _carry_out(self, entry: Entry) -> BusError | None:
        """What kept us from it. A fault of ours is told as a dead letter: raised, it would come again for ever, and hold up all."""
        task_id = entry.fields.get(b"t", b"").decode(errors="replace")
        try:
            return await self._clear(task_id)
        except Exception as error:
            log.exception("the entry of %s cannot be dealt with", task_id)
            return await self._bury(task_id, "", f"it cannot be dealt with: {error!r}")

    async def _clear(self, task_id: str) -> BusError | None:
        try:
            *values, metered, used, result = await self._bus.bulk.call(
                "HMGET", self._shard.task(task_id), *FIELDS, "metered", "used", "result"
            )
            record = parse_record(values)
        except BusError as error:
            return error
        except HeadraceError as error:
            return await self._bury(task_id, "", str(error))
        if record is None:
            metrics.REPLIES.labels("expired").inc()
            return None
        left = [self._reply(task_id, record, result)] if record.task.reply_to else []
        if metered:
            left.append(self._settle(task_id, record, used))
        if record.task.webhook:
            left.append(self._tell(task_id, record))
        faults = [fault for fault in await asyncio.gather(*left, return_exceptions=True) if fault is not None]
        for fault in faults:
            if isinstance(fault, BusError):  # before all others: as a dead letter the entry would not come again
                return fault
        if faults:
            raise faults[0]
        return None

    async def _reply(self, task_id: str, record: Record, result: bytes | None) -> BusError | None:
        try:
            await send_reply(self._bus, record.task.reply_to, make_reply(task_id, record, result))
            metrics.REPLIES.labels("sent").inc()
        except WrongKeyType as error:
            reason = f"the reply stream holds a type that is not a stream: {error}"
            return await self._bury(task_id, record.task.tenant, reason)
        except BusError as error:
            return error
        return None

    async def _settle(self, task_id: str, record: Record, used: bytes | None) -> BusError | None:
        """A task that has not ended has been put here by a foreign hand: it is settled when it has."""
        if not record.state.terminal:
            return None
        try:
            await self._quotas.settle(record.task.tenant, task_id, int(used or 0))
            metrics.SETTLED.inc()
        except WrongKeyType as error:  # it never will be, and must not stop the others
            log.error("what %s has used cannot be charged: %s", task_id, error)
        except BusError as error:
            return error
        return None

    async def _tell(self, task_id: str, record: Record) -> BusError | None:
        if not record.state.terminal:
            return None
        task = record.task
        delivery = Delivery(
            id=message_id(task_id, str(record.epoch)),
            event=f"task.{record.state}",
            to=task.webhook,
            tenant=task.tenant,
            at_ms=record.finished_at_ms,
            task=task_id,
        )
        try:
            await announce(self._bus, delivery)
        except WrongKeyType as error:
            reason = f"the stream of webhooks holds a type that is not a stream: {error}"
            return await self._bury(task_id, task.tenant, reason, delivery)
        except BusError as error:
            return error
        return None

    async def _bury(self, task_id: str, tenant: str, reason: str, delivery: Delivery | None = None) -> BusError | None:
        """A reply; with `delivery` the event for a webhook."""
        kind = "webhook" if delivery else "reply"
        log.error("the %s of %s cannot be delivered: %s", kind, task_id, reason)
        (metrics.WEBHOOKS if delivery else metrics.REPLIES).labels("dead").inc()
        try:
            letter: dict[Arg, Arg] = {"k": kind, "t": task_id, "code": f"{kind}_undeliverable", "reason": reason}
            letter["tenant"] = tenant
            if delivery:
                letter["delivery"] = encode(delivery)
            await append(self._bus, self._shard.dead, letter, most_kept=DEAD_KEPT)
        except BusError as error:
            return error
        return None


def make_reply(task_id: str, record: Record, result: bytes | None) -> Reply:
    task, finished = record.task, record.finished
    said = result_in_json(task_id, result or b"", finished) if record.state is State.COMPLETED else NULL
    is_elsewhere = finished is not None and (finished.content_type or finished.stored is not None)
    return Reply(
        event=f"{task_id}:{record.epoch}",
        id=task_id,
        task_id=task.task_id,
        status=record.state,
        model=task.model,
        user=task.user,
        result=said,
        text=first_text(bytes(said)) if said is not NULL and not is_elsewhere else None,
        error=finished.error if finished else None,
        context=task.context,
        metadata=task.metadata,
        created_at_ms=record.created_at_ms,
        finished_at_ms=record.finished_at_ms,
        cache=finished.cache if finished else "",
        alias=task.alias,
        variant=task.variant,
        worker=record.worker,
        attempt=record.attempt,
    )
