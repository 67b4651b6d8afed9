"""Every event of a shard's bus that somebody in this process waits for.

Each replica reads with a consumer group of its own (NOACK: the client's cursor proves delivery, not a pending list), so
every replica sees every event, and its lag stands in XINFO GROUPS. One blocked read serves the whole process; what nobody
here waits for is dropped before it is decoded.

Invariants
  - The group starts at the end of the stream, once; after any error it is set to the last id processed here, and every
    listener of the shard is told to refill from the logs (`on_gap`), because entries may have been trimmed meanwhile. A
    stream that ends below that id has lost entries (failover, FLUSHALL): the group is then set to its end.
  - The group's lease in `readers` is renewed with every few passes; the scheduler removes groups whose lease has run out.
"""

import asyncio
import logging
import random
from collections.abc import Iterator
from typing import Protocol

from shared.bus.client import BLOCK_MS, Bus
from shared.bus.connection import Reply
from shared.bus.streams import join
from shared.clock import monotonic_s
from shared.errors import UNDECODABLE, BusError
from shared.ids import Place
from shared.keys import ShardKeys, reader_group, shard_keys
from shared.messages import Event, decode_event

log = logging.getLogger(__name__)

COUNT = 1000
"""Entries of one read; 0.5 us each for the server."""
LEASE_MS = 60_000
"""A reader silent for a minute is gone, and its group is removed."""
RENEW_EVERY_S = LEASE_MS / 4000


class Listener(Protocol):
    def on_event(self, entry: bytes, task_id: str, event: Event) -> None:
        """One event, live, in order. Must not block."""

    def on_gap(self) -> None:
        """Events may have been missed: refill from the log."""


class Tail:
    """Reads the bus partitions of one shard and hands each event to the listeners of its task and session."""

    def __init__(self, bus: Bus, *, pool: str, shard: int, partitions: int, replica: str) -> None:
        self._bus, self._replica = bus, replica
        self.keys: ShardKeys = shard_keys(pool, shard)
        self._group = reader_group(replica)
        self.name = f"{self.keys.base}bus"
        self._streams = [self.keys.bus(partition) for partition in range(partitions)]
        self._processed: dict[str, bytes] = {}
        self._read = bus.reader("tail")
        self._tasks: dict[str, set[Listener]] = {}
        self._sessions: dict[str, set[Listener]] = {}
        self._client_id: Reply = None
        self._stopping = False
        self._renew_at_s = 0.0
        self.joined = asyncio.Event()
        """Set once the group stands: whatever is published afterwards will be seen."""
        self.last_pass_s: float | None = None
        self.fault: str | None = None

    def listen(self, listener: Listener, *, task: str = "", session: str = "") -> None:
        index, name = (self._tasks, task) if task else (self._sessions, session)
        index.setdefault(name, set()).add(listener)

    def unlisten(self, listener: Listener, *, task: str = "", session: str = "") -> None:
        index, name = (self._tasks, task) if task else (self._sessions, session)
        listeners = index.get(name, set())
        listeners.discard(listener)
        if not listeners:
            index.pop(name, None)

    async def run(self) -> None:
        """Read until `stop`."""
        joined = False
        while not self._stopping:
            try:
                if not joined:
                    await self._join()
                    joined = True
                self._dispatch(await self._next())
                self.last_pass_s, self.fault = monotonic_s(), None
            except Exception as error:  # noqa: BLE001 - a listener's bug must not end the loop
                joined = False
                self.fault = f"{self.name}: {error}"
                (log.warning if isinstance(error, BusError) else log.exception)("cannot read the bus: %s", error)
                await asyncio.sleep(random.uniform(0.05, 0.5))
        await self._leave()

    async def stop(self) -> None:
        self._stopping = True
        if self._client_id is not None:
            try:
                await self._bus.commands.call("CLIENT", "UNBLOCK", self._client_id)
            except BusError as error:
                log.debug("ignored while stopping: %s", error)

    async def _join(self) -> None:
        self._client_id = await self._read.call("CLIENT", "ID")
        processed = [self._processed.get(stream, b"") for stream in self._streams]
        self._renew_at_s = monotonic_s() + RENEW_EVERY_S
        stands = await join(self._bus, self.keys.readers, self._streams, self._group, LEASE_MS, processed)
        self._processed = dict(zip(self._streams, stands, strict=True))
        if self.joined.is_set():
            for listeners in [*self._tasks.values(), *self._sessions.values()]:
                for listener in list(listeners):
                    listener.on_gap()
        self.last_pass_s, self.fault = monotonic_s(), None
        self.joined.set()

    async def _next(self) -> Reply:
        if monotonic_s() >= self._renew_at_s:
            self._renew_at_s = monotonic_s() + RENEW_EVERY_S
            await join(self._bus, self.keys.readers, [], self._group, LEASE_MS, [])
        return await self._read.call(
            *("XREADGROUP", "GROUP", self._group, "reader", "COUNT", COUNT, "BLOCK", BLOCK_MS, "NOACK"),
            *("STREAMS", *self._streams, *[">"] * len(self._streams)),
        )

    def _dispatch(self, reply: Reply) -> None:
        for stream, entries in reply or ():
            for entry, fields in entries:
                self._hand_out(entry, fields)
            self._processed[stream.decode()] = entries[-1][0]

    def _hand_out(self, entry: bytes, fields: list[bytes]) -> None:
        """Fields are written by our scripts as t, s, e: task, session, event. What is not ours must not come again."""
        try:
            task_id, session = fields[1].decode(), fields[3].decode()
            listeners = self._tasks.get(task_id)
            if session and (of_session := self._sessions.get(session)):
                listeners = of_session | listeners if listeners else of_session
            if not listeners:
                return
            event = decode_event(fields[5])
        except (*UNDECODABLE, IndexError) as error:
            log.error("passed over the entry %s of a bus: %s", entry, error)
            return
        for listener in list(listeners):
            try:
                listener.on_event(entry, task_id, event)
            except Exception:  # else the others would miss it, and the entry would be read again and again
                log.exception("a listener failed on the entry %s of %s", entry, task_id)

    async def _leave(self) -> None:
        try:
            for stream in self._streams:
                await self._bus.commands.call("XGROUP", "DESTROY", stream, self._group)
            await self._bus.commands.call("ZREM", self.keys.readers, self._group)
        except BusError as error:
            log.debug("ignored while leaving: %s", error)


class Tails:
    """The tails of all shards that a replica reads, found by place."""

    def __init__(self, tails: list[Tail]) -> None:
        self._by_tag = {tail.keys.tag: tail for tail in tails}

    def __iter__(self) -> Iterator[Tail]:
        return iter(self._by_tag.values())

    def of(self, place: Place) -> Tail | None:
        return self._by_tag.get(place.tag)
