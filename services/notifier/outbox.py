"""What must leave a shard: the replies that other systems wait for, written to their own streams.

The outbox holds ids; the reply is made from the task's hash. At least once: a crash between the write and the
acknowledgement writes a reply again, with the same `event`.
"""

import asyncio
import logging
from collections.abc import Sequence

from msgspec import Raw

from services.notifier import metrics
from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.consume import Entry, settle
from shared.bus.streams import append
from shared.chunks import first_text
from shared.errors import BusError, HeadraceError, WrongKeyType
from shared.keys import ShardKeys
from shared.lifecycle import State
from shared.messages import NULL, Reply
from shared.record import FIELDS, Record, parse_record
from shared.replies import send_reply

log = logging.getLogger(__name__)

DEAD_KEPT = 10_000
"""Dead letters of a shard; older ones go."""


class Outbox:
    def __init__(self, bus: Bus, shard: ShardKeys) -> None:
        self._bus, self._shard = bus, shard

    async def on_entries(self, entries: list[Entry]) -> Sequence[bytes]:
        """Raises: Unfinished, if Redis is out of reach."""
        return settle(entries, await asyncio.gather(*(self._reply(entry) for entry in entries)))

    async def _reply(self, entry: Entry) -> BusError | None:
        """What kept us from it."""
        task_id = entry.fields.get(b"t", b"").decode()
        try:
            values = await self._bus.bulk.call("HMGET", self._shard.task(task_id), *FIELDS, "result")
            record = parse_record(values[:-1])
            if record is None or not record.task.reply_to:
                metrics.REPLIES.labels("expired").inc()
                return None
            await send_reply(self._bus, record.task.reply_to, make_reply(task_id, record, values[-1]))
            metrics.REPLIES.labels("sent").inc()
        except WrongKeyType as error:
            return await self._bury(task_id, f"the reply stream holds a type that is not a stream: {error}")
        except BusError as error:
            return error
        except HeadraceError as error:
            return await self._bury(task_id, str(error))
        return None

    async def _bury(self, task_id: str, reason: str) -> BusError | None:
        log.error("the reply of %s cannot be delivered: %s", task_id, reason)
        metrics.REPLIES.labels("dead").inc()
        try:
            letter: dict[Arg, Arg] = {"k": "reply", "t": task_id, "code": "reply_undeliverable", "reason": reason}
            await append(self._bus, self._shard.dead, letter, most_kept=DEAD_KEPT)
        except BusError as error:
            return error
        return None


def make_reply(task_id: str, record: Record, result: bytes | None) -> Reply:
    task, finished = record.task, record.finished
    completed = record.state is State.COMPLETED and bool(result)
    return Reply(
        event=f"{task_id}:{record.epoch}",
        id=task_id,
        task_id=task.task_id,
        status=record.state,
        model=task.model,
        user=task.user,
        result=Raw(result) if completed and result else NULL,
        text=first_text(result) if completed and result else None,
        error=finished.error if finished else None,
        context=task.context,
        metadata=task.metadata,
        created_at_ms=record.created_at_ms,
        finished_at_ms=record.finished_at_ms,
    )
