"""The consumer loop, and the ack contract.

Problem. A consumer group hands each entry to one consumer and forgets nothing: what was read and not acknowledged stays in
the pending list for ever. Most Python queues lose work exactly here: a reply lost after the read, a consumer killed in
between, an undecodable entry that comes back for ever, an exception that ends the loop while the process looks alive.

The contract
  - The handler gets a batch and answers which entries are done. Those are acknowledged and deleted in the same write as
    the next read. Entries that the handler's own script clears are not named.
  - An entry that is not named stays pending: it comes again to this consumer after a reconnect, or to another one once it
    was idle for RECLAIM_AFTER_MS. To a consumer that is the only one of its group it comes again every few seconds, for as long
    as it is pending: nobody else would ever look at what a handler has lost sight of. So every handler must be harmless when
    repeated.
  - A handler that raises acknowledges nothing, or with Unfinished what it names. Nothing new is read before the rest was dealt
    with: in a Redis that is full, entries would else be read, refused and left pending by the thousand.
  - Faults in an entry are the handler's business: it answers them as done.

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
from shared.bus.streams import ensure_group, forget
from shared.clock import monotonic_s
from shared.errors import BusError, BusUnavailable, ConnectionLost, HeadraceError, MemoryFull

log = logging.getLogger(__name__)

RECLAIM_AFTER_MS = 5000
"""Handlers take milliseconds; after this the consumer is taken for dead. Shorter repeats work, longer delays it."""
RECLAIM_PAGE = 50
"""XAUTOCLAIM looks at ten times this many entries: about 1 ms of the server."""
FORGET_AFTER_MS = 60_000
"""A killed consumer stays in its group, and costs every look at it; a live one reads every second."""
PAUSE_S = (0.05, 0.5)
"""After an error; drawn at random, so that replicas do not come back together."""


class Entry(Struct, frozen=True):
    id: bytes
    fields: dict[bytes, bytes]


Handler = Callable[[list[Entry]], Awaitable[Sequence[bytes]]]


class Unfinished(BusError):
    """Raised by a handler that Redis keeps from dealing with anything now; `done` are dealt with nevertheless."""

    def __init__(self, reason: str, done: Sequence[bytes]) -> None:
        super().__init__(reason)
        self.done = done


def settle(entries: Sequence[Entry], kept_from: Sequence[HeadraceError | None]) -> list[bytes]:
    """What a handler answers, given what kept it from each entry. One that Redis refuses for its own sake, or that needs what is
    away beside Redis, stays pending and comes again, but holds up no other.

    Raises: Unfinished, if Redis is out of reach or full.
    """
    done = [entry.id for entry, error in zip(entries, kept_from, strict=True) if error is None]
    for error in kept_from:
        if isinstance(error, MemoryFull | BusUnavailable | ConnectionLost):
            raise Unfinished(f"{len(entries) - len(done)} entries must wait: {error}", done)
    left = [(entry.id, error) for entry, error in zip(entries, kept_from, strict=True) if error is not None]
    if left:  # in one line: an object store that is away may keep thousands waiting
        log.error("%d entries must wait, such as %s: %s", len(left), *left[0])
    return done


class Consumer:
    """One member of one group on one stream."""

    def __init__(
        self, bus: Bus, *, stream: str, group: str, name: str, handle: Handler, count: int, shared: bool = True
    ) -> None:
        """`shared`: other consumers of the group may have died with entries, which are then claimed. If it is not, this is the
        only one, and its own entries come again until they are cleared."""
        self.name = stream
        self._bus, self._handle, self._count, self._shared = bus, handle, count, shared
        self._stream, self._group, self._name = stream, group, name
        self._read = bus.reader(f"{group}-read")
        self._done: list[bytes] = []
        self._cursor = b"0-0"
        self._reclaim_at_s = self._forget_at_s = 0.0
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
                await self._look_back()
                self.last_pass_s, self.fault = monotonic_s(), None
            except Exception as error:  # noqa: BLE001 - a handler's bug must not end the loop
                joined = False
                await self._wait_out(error)
        await self._leave()
        await self._read.close()

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
        await asyncio.sleep(random.uniform(*PAUSE_S))

    async def _join(self) -> None:
        self._client_id = await self._read.call("CLIENT", "ID")
        await ensure_group(self._bus, self._stream, self._group)

    async def _next(self) -> list[Entry]:
        self._acknowledge()
        return _parse(
            await self._read.call(
                *("XREADGROUP", "GROUP", self._group, self._name, "COUNT", self._count, "BLOCK", BLOCK_MS),
                *("STREAMS", self._stream, ">"),
            )
        )

    def _acknowledge(self) -> None:
        """In the same write as what is read next."""
        done, self._done = self._done, []
        if done:
            self._read.post("XACK", self._stream, self._group, *done)
            self._read.post("XDEL", self._stream, *done)

    async def _recover(self) -> None:
        """Entries read by this consumer that its handler does not know, or has not dealt with."""
        self._acknowledge()
        after = b"0"
        while entries := _parse(
            await self._read.call(
                *("XREADGROUP", "GROUP", self._group, self._name, "COUNT", self._count, "STREAMS", self._stream, after)
            )
        ):
            await self._take(entries)
            after = entries[-1].id

    async def _look_back(self) -> None:
        """Take over what consumers that were killed have left, and remove those that left nothing; or look at what is left here."""
        now_s = monotonic_s()
        if now_s >= self._reclaim_at_s:
            self._reclaim_at_s = now_s + RECLAIM_AFTER_MS / 1000 * random.uniform(0.3, 0.6)
            if self._shared:
                await self._take(await self._reclaim())
            else:
                await self._recover()
        if self._shared and now_s >= self._forget_at_s:
            self._forget_at_s = now_s + FORGET_AFTER_MS / 1000 * random.uniform(0.5, 1.0)
            await forget(self._bus, self._stream, self._group, silent_ms=FORGET_AFTER_MS, own=self._name)

    async def _reclaim(self) -> list[Entry]:
        cursor, entries, *_ = await self._read.call(
            *("XAUTOCLAIM", self._stream, self._group, self._name, RECLAIM_AFTER_MS, self._cursor),
            *("COUNT", RECLAIM_PAGE),
        )
        self._cursor = cursor
        return _entries(entries)

    async def _take(self, entries: list[Entry]) -> None:
        if entries:
            try:
                self._done += await self._handle(entries)
            except Unfinished as unfinished:
                self._done += unfinished.done
                raise

    async def _leave(self) -> None:
        self._acknowledge()
        await _ignoring_bus_errors(self._forget())

    async def _forget(self) -> None:
        pending = await self._read.call("XPENDING", self._stream, self._group, "-", "+", 1, self._name)
        if not pending:
            await self._read.call("XGROUP", "DELCONSUMER", self._stream, self._group, self._name)


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
