"""From ends of tasks to lines in the output and error files."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from msgspec.structs import replace

from services.scheduler import metrics
from services.scheduler.batches.endings import Ending, answered, lost
from services.scheduler.batches.feeding import MEMORY_FULL
from services.scheduler.batches.items import Item, reply_name
from services.scheduler.batches.scripts import Ended, Segment, end
from services.scheduler.batches.work import Tools, Work
from services.scheduler.object_sweep import AGAIN_MS
from shared import keys
from shared.batches import End
from shared.bus.connection import Reply as Answer
from shared.clock import monotonic_s
from shared.errors import UNDECODABLE, MemoryFull, ObjectMissing
from shared.ids import new_nonce
from shared.keys import keys_of
from shared.lifecycle import State
from shared.messages import NULL, Finished, Reply, encode, is_json_elsewhere, result_in_json
from shared.record import FIELDS, Record, parse_record

log = logging.getLogger(__name__)

READ = 100
READ_BYTES = 4 * 1024 * 1024
"""Replies of one read, and what they may come to, going by the largest of the last ones. The first read is of one: who takes a
batch over knows nothing of them, and as many may wait as the window has."""
SEGMENT_ITEMS, SEGMENT_BYTES = 500, 4 * 1024 * 1024
SEGMENT_S, SEGMENT_GROWTH, LONGEST_SEGMENT_S = 1.0, 0.01, 60.0
"""Age at which a segment is put, and how much older each may get than the one before: a day of a slow batch is 4,000 objects, not
86,000, and a quick one is still read a second after an item has ended."""
SILENCE_S = 30.0
"""Without any end, while there are tasks: they are looked at, should a reply have been lost."""
FIRST_LOOK_S = 5.0
"""The first look comes so soon: a batch in which nothing moves may not keep its holder for longer (holder.STILL_S)."""
KEPT_MS = 600_000
"""Of a task whose line is in the output: long enough for whoever still repeats something. Without it a large batch would fill
Redis with what is in the object store."""
LETTER_MS = 2 * AGAIN_MS
"""Of a task that may have become a dead letter, at least: the sweep of objects must see it, which says whose body is whose."""

Again = Callable[[int, Item], Awaitable[None]]
_reply = msgspec.json.Decoder(Reply)
_kept = msgspec.json.Decoder(dict[str, int])


class Gathering:
    def __init__(self, tools: Tools, work: Work, again: Again) -> None:
        """`again`: submits an item whose task is nowhere."""
        self._tools, self._work, self._again = tools, work, again
        self._stream = keys.reply(reply_name(work.batch.id))
        self._cursor = b"0-0"
        self._largest = READ_BYTES
        self._oldest_s = monotonic_s()
        self._news_s = self._oldest_s - max(0.0, SILENCE_S - FIRST_LOOK_S)
        self._segments = work.batch.segments

    async def take(self) -> bool:
        """The ends that have come; whether there were any. Raises: as `commit`."""
        count = max(1, min(READ, READ_BYTES // max(1, self._largest)))
        found = await self._tools.bus.read("XREAD", "COUNT", count, "STREAMS", self._stream, self._cursor)
        entries: Answer = found[0][1] if found else []
        if entries:
            self._news_s = monotonic_s()
            self._largest = max(self._largest // 2, *(len(value) for _, fields in entries for value in fields))
        for entry, fields in entries:
            large = await self._on_reply(dict(zip(fields[::2], fields[1::2], strict=True)).get(b"reply", b""))
            self._cursor = entry
            if large:
                await self.commit(hurry=False)  # all of a page would be in memory
        if self._work.numbers and monotonic_s() - self._news_s > SILENCE_S:
            await self.look(list(self._work.numbers.values()))
            self._news_s = monotonic_s()
        return bool(entries)

    async def look(self, numbers: Sequence[int]) -> None:
        """At the tasks of these items: what has ended is an end, what is gone is submitted again.

        Raises: as `commit`.
        """
        for first in range(0, len(numbers), READ):
            page = [(number, self._work.open[number]) for number in numbers[first : first + READ]]
            states = await asyncio.gather(*(self._state(item.task_id) for _, item in page))
            for (number, item), state in zip(page, states, strict=True):
                if item.task_id not in self._work.numbers:
                    continue
                if state is None or State(state.decode()).terminal:
                    await self._from_hash(number, item)
                    await self.commit(hurry=False)  # all of a window, with its answers, would be in memory

    async def commit(self, *, hurry: bool) -> bool:
        """Put a segment and name it, if there is enough for one, or it is time. `hurry`: nothing is going to be added.

        Raises: Fenced, OutOfStep, StoreUnavailable, BusError.
        """
        endings = self._work.endings
        if not endings:
            self._oldest_s = monotonic_s()
            return False
        size = sum(len(ending.line) for ending in endings)
        if not (hurry or len(endings) >= SEGMENT_ITEMS or size >= SEGMENT_BYTES or self._is_old()):
            return False
        leaving = self._leaving(endings)
        await self._put(endings, leaving)
        self._work.endings = []
        self._segments, self._oldest_s = self._segments + 1, monotonic_s()
        for ending in endings:
            metrics.BATCH_ITEMS.labels(ending.end).inc()
            del self._work.open[ending.number]
        await self._forget(leaving)
        return True

    async def let_go(self) -> None:
        """The tasks of the segment that was named last: its holder may have died before it came to that. Raises: BusError."""
        leaving = await self._tools.bus.read("HGET", keys.batch(self._work.batch.id, "state"), "leaving")
        await self._expire(_kept.decode(leaving or b"{}"))

    async def file_some(self) -> None:
        """As `file_rest`; but a full Redis takes no new file: then they wait, and what has ended is gathered on, since only that makes
        room. Raises: StoreUnavailable, BusError."""
        try:
            await self.file_rest()
        except MemoryFull as error:
            metrics.BATCH_WAITS.labels(MEMORY_FULL).inc()
            log.warning("%s has segments that are in no file yet: %s", self._work.batch.id, error)

    async def file_rest(self) -> None:
        """Segments that were named, and are in no file yet. Raises: MemoryFull, StoreUnavailable, BusError."""
        unfiled = keys.batch(self._work.batch.id, "unfiled")
        for entry in await self._tools.bus.read("LRANGE", unfiled, 0, -1):
            kind, segment, size = entry.decode().split()
            await self._tools.store.file(self._work.batch, kind, segment, int(size))
            await self._tools.bus.commands.call("LREM", unfiled, 1, entry)

    # -- parts

    def _is_old(self) -> bool:
        age_s = min(SEGMENT_S + SEGMENT_GROWTH * self._segments, LONGEST_SEGMENT_S)
        return monotonic_s() - self._oldest_s >= age_s

    async def _put(self, endings: list[Ending], leaving: dict[str, int]) -> None:
        work, tools = self._work, self._tools
        output = [ending.line for ending in endings if ending.end is End.COMPLETED]
        errors = [ending.line for ending in endings if ending.end is not End.COMPLETED]
        segment = Segment(
            f"{work.fence.epoch:06d}-{new_nonce()}",
            sum(map(len, output)),
            sum(map(len, errors)),
            len(output),
            len(errors),
            sum(ending.tokens_in for ending in endings),
            sum(ending.tokens_out for ending in endings),
            encode(leaving),
        )
        await tools.store.put(work.batch, segment.name, {"output": b"".join(output), "errors": b"".join(errors)})
        ended = [Ended(ending.number, ending.end) for ending in endings]
        work.check(await end(tools.bus, work.batch.id, work.fence, segment, ended))
        await self.file_some()

    def _leaving(self, endings: Sequence[Ending]) -> dict[str, int]:
        """How long their tasks are kept once their lines are there (ms): not for as long as others."""
        longest_ms = max(self._tools.config.limits.results_kept_s * 1000, LETTER_MS)
        return {ending.task_id: longest_ms if ending.kept else KEPT_MS for ending in endings if ending.task_id}

    async def _forget(self, leaving: dict[str, int]) -> None:
        """Replies up to the last one read are in segments, and their tasks may go."""
        if self._cursor != b"0-0":
            milliseconds, _, number = self._cursor.decode().partition("-")
            await self._tools.bus.commands.call("XTRIM", self._stream, "MINID", f"{milliseconds}-{int(number) + 1}")
        await self._expire(leaving)

    async def _expire(self, leaving: dict[str, int]) -> None:
        ends = [(keys_of(task_id)[0].task(task_id), kept_ms) for task_id, kept_ms in leaving.items()]
        expire = self._tools.bus.commands.call
        await asyncio.gather(*(expire("PEXPIRE", key, kept_ms, "LT") for key, kept_ms in ends))

    async def _on_reply(self, data: bytes) -> bool:
        """A reply for no open item is a repeat, or a stranger's. True: its answer was fetched from the object store."""
        try:
            reply = _reply.decode(data)
            state = State(reply.status)
        except (*UNDECODABLE, ValueError):
            log.warning("%s: an entry of %s is no reply", self._work.batch.id, self._stream)
            return False
        number = self._work.numbers.get(reply.id)
        if number is None:
            return False
        item = self._work.open[number]
        large = state is State.COMPLETED and is_json_elsewhere(reply.id, reply.result)
        if large:
            await self._from_hash(number, item, reply)
        elif state is State.COMPLETED and reply.result is not NULL:
            self._add(answered(self._work.batch.id, number, item, state, 200, bytes(reply.result)))
        elif state in (State.COMPLETED, State.FAILED):
            await self._from_hash(number, item, reply)
        else:
            self._add(answered(self._work.batch.id, number, item, state, 0, b""))
        return large

    async def _from_hash(self, number: int, item: Item, reply: Reply | None = None) -> None:
        """A reply has no HTTP status, of a failure not the engine's own words, and no large answer.

        Raises: BusError, StoreUnavailable, TimeoutError.
        """
        record, result = await self._record(item.task_id)
        finished = record.finished if record is not None else None
        error = next((said.error for said in (reply, finished) if said is not None and said.error is not None), None)
        batch_id = self._work.batch.id
        if record is not None and not record.state.terminal:  # somebody else's word for it
            return
        body = await self._body(item.task_id, result, finished)
        if record is not None and (body or record.state not in (State.COMPLETED, State.FAILED)):
            ending = answered(batch_id, number, item, record.state, record.status, body)
            if record.state is State.FAILED and record.task.stored is not None:  # its dead letter may need that body
                ending = replace(ending, kept=True)
            self._add(ending)
        elif error is not None:
            self._add(answered(batch_id, number, item, State.FAILED, 500, encode({"error": error})))
        elif record is None and (reply is None or self._work.stop is None):
            log.warning("%s: the answer of item %d is gone with its task; it is submitted again", batch_id, number)
            await self._again(number, item)
        else:
            self._add(lost(batch_id, number, item))

    async def _record(self, task_id: str) -> tuple[Record | None, bytes]:
        """With the result. None: the task is gone, or was cancelled before it came. Raises: BusError, HeadraceError."""
        key = keys_of(task_id)[0].task(task_id)
        *values, result = await self._tools.bus.read("HMGET", key, *FIELDS, "result")
        return parse_record(values), result or b""

    async def _body(self, task_id: str, result: bytes, finished: Finished | None) -> bytes:
        """What the line says of the answer: all of it if it is JSON, else where it is. Empty: there is none any more.

        Raises: StoreUnavailable, TimeoutError.
        """
        if finished is None or finished.stored is None or finished.content_type:
            said = result_in_json(task_id, result, finished)
            return b"" if said is NULL else bytes(said)
        try:
            return await self._tools.store.answer(task_id, finished.stored)
        except ObjectMissing as error:
            log.error("%s: %s", self._work.batch.id, error)
            return b""

    def _add(self, ending: Ending) -> None:
        self._work.numbers.pop(ending.task_id or self._work.open[ending.number].task_id, None)
        self._work.endings.append(ending)

    async def _state(self, task_id: str) -> bytes | None:
        found = await self._tools.bus.read("HGET", keys_of(task_id)[0].task(task_id), "state")
        return bytes(found) if found is not None else None
