"""The consumer loop, and the ack contract.

Problem. A consumer group hands each entry to one consumer and forgets nothing: what was read and not acknowledged stays in
the pending list for ever. Most Python queues lose work exactly here: a reply lost after the read, a consumer killed in
between, an undecodable entry that comes back for ever, an exception that ends the loop while the process looks alive.

The contract
  - The handler gets a batch and answers which entries are done. Those are acknowledged and deleted in the same write as
    the next read. Entries that the handler's own script clears are not named.
  - An entry that is not named stays pending: it comes again to this consumer after a reconnect, or to another one once it
    was idle for RECLAIM_AFTER_MS. So every handler must be harmless when repeated.
  - A handler that raises acknowledges nothing. Faults in an entry are its business: it answers them as done.

Invariants
  - One pass takes at most BLOCK_MS plus the handler's time; `last_pass_s` is the liveness of the service.
  - Consumer names are made for one boot, so nobody inherits or steals; a consumer leaves its group only with nothing pending.
  - The reclaim cursor is carried from call to call: restarting it at 0 would never reach the tail of a long list.

Rejected: reading ahead of what is handled (entries age unowned), a lock for reclaiming (XAUTOCLAIM is atomic, and a lock
outlives its holder), cancelling a blocked read (its reply would be lost: it is unblocked by CLIENT UNBLOCK instead).
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from shared.bus.client import BLOCK_MS, Bus
from shared.bus.connection import Reply
from shared.clock import monotonic_s
from shared.errors import BusError, CommandRefused

log = logging.getLogger(__name__)

RECLAIM_AFTER_MS = 5000
"""Handlers take milliseconds; after this the consumer is taken for dead. Shorter repeats work, longer delays it."""
RECLAIM_PAGE = 50
"""XAUTOCLAIM looks at ten times this many entries: about 1 ms of the server."""


class Entry(Struct, frozen=True):
    id: bytes
    fields: dict[bytes, bytes]


Handler = Callable[[list[Entry]], Awaitable[Sequence[bytes]]]


class Consumer:
    """One member of one group on one stream."""

    def __init__(
        self, bus: Bus, *, stream: str, group: str, name: str, handle: Handler, count: int, shared: bool = True
    ) -> None:
        """`shared`: other consumers of the group may have died with entries, which are then claimed."""
        self.name = stream
        self._bus, self._handle, self._count, self._shared = bus, handle, count, shared
        self._stream, self._group, self._name = stream, group, name
        self._read = bus.reader(f"{group}-read")
        self._done: list[bytes] = []
        self._cursor = b"0-0"
        self._reclaim_at_s = 0.0
        self._client_id: Reply = None
        self._stopping = False
        self.last_pass_s: float | None = None
        self.fault: str | None = None
        """Why the stream cannot be read now, or None."""

    async def run(self) -> None:
        """Consume until `stop`. Redis errors are waited out; a handler's bug is logged, and its entries come again."""
        joined = False
        while not self._stopping:
            try:
                if not joined:
                    await self._join()
                    joined = True
                    await self._recover()
                    self.last_pass_s, self.fault = monotonic_s(), None
                await self._take(await self._next())
                if self._shared and monotonic_s() >= self._reclaim_at_s:
                    await self._take(await self._reclaim())
                self.last_pass_s, self.fault = monotonic_s(), None
            except Exception as error:  # noqa: BLE001 - a handler's bug must not end the loop
                joined = False
                await self._wait_out(error)
        await self._leave()

    async def stop(self) -> None:
        self._stopping = True
        if self._client_id is not None:
            await _ignoring_bus_errors(self._bus.commands.call("CLIENT", "UNBLOCK", self._client_id))

    async def _wait_out(self, error: Exception) -> None:
        if isinstance(error, BusError):
            log.warning("cannot read %s: %s", self._stream, error)
        else:
            log.exception("a handler of %s failed; its entries come again", self._stream)
        self.fault = f"{self._stream}: {error}"
        await asyncio.sleep(random.uniform(0.05, 0.5))

    async def _join(self) -> None:
        self._client_id = await self._read.call("CLIENT", "ID")
        await ensure_group(self._bus, self._stream, self._group, "0")

    async def _next(self) -> list[Entry]:
        done, self._done = self._done, []
        if done:
            self._read.send("XACK", self._stream, self._group, *done)
            self._read.send("XDEL", self._stream, *done)
        return _parse(
            await self._read.call(
                *("XREADGROUP", "GROUP", self._group, self._name, "COUNT", self._count, "BLOCK", BLOCK_MS),
                *("STREAMS", self._stream, ">"),
            )
        )

    async def _recover(self) -> None:
        """Entries whose delivery was lost: read by this consumer, and unknown to its handler."""
        after = b"0"
        while entries := _parse(
            await self._read.call(
                *("XREADGROUP", "GROUP", self._group, self._name, "COUNT", self._count, "STREAMS", self._stream, after)
            )
        ):
            await self._take(entries)
            after = entries[-1].id

    async def _reclaim(self) -> list[Entry]:
        self._reclaim_at_s = monotonic_s() + RECLAIM_AFTER_MS / 1000 * random.uniform(0.3, 0.6)
        cursor, entries, *_ = await self._read.call(
            *("XAUTOCLAIM", self._stream, self._group, self._name, RECLAIM_AFTER_MS, self._cursor),
            *("COUNT", RECLAIM_PAGE),
        )
        self._cursor = cursor
        return _entries(entries)

    async def _take(self, entries: list[Entry]) -> None:
        if entries:
            self._done += await self._handle(entries)

    async def _leave(self) -> None:
        if self._done:
            self._read.send("XACK", self._stream, self._group, *self._done)
            self._read.send("XDEL", self._stream, *self._done)
        await _ignoring_bus_errors(self._forget())

    async def _forget(self) -> None:
        pending = await self._read.call("XPENDING", self._stream, self._group, "-", "+", 1, self._name)
        if not pending:
            await self._read.call("XGROUP", "DELCONSUMER", self._stream, self._group, self._name)


async def ensure_group(bus: Bus, stream: str, group: str, start: str) -> None:
    try:
        await bus.commands.call("XGROUP", "CREATE", stream, group, start, "MKSTREAM")
    except CommandRefused as error:
        if not str(error).startswith("BUSYGROUP"):
            raise


async def _ignoring_bus_errors(call: Awaitable[Reply]) -> None:
    try:
        await call
    except BusError as error:
        log.debug("ignored while leaving: %s", error)


def _parse(reply: Reply) -> list[Entry]:
    return _entries(reply[0][1]) if reply else []


def _entries(pairs: Reply) -> list[Entry]:
    """Deleted entries come with no fields; they are passed on empty, so that the handler acknowledges them."""
    return [
        Entry(id, dict(zip(fields[::2], fields[1::2], strict=True)) if fields else {}) for id, fields in pairs if id
    ]
