"""A multiplexed Redis connection.

Problem. redis-py's asyncio client awaits one command at a time and takes about 38 us of CPU for each; every Python queue
spends most of its time there. Its connection layer underneath is ten times cheaper, and knows TLS, authentication and
Unix sockets.

So: one task writes, one task reads. Callers append to a buffer and get a future; the writer wakes in the same turn of the
event loop and sends all of it as one write, so nothing waits when idle and batches grow by themselves under load. Replies
come in the order of commands.

Invariants
  - A command is written at most once. When the connection breaks, what was written and not answered fails with
    ConnectionLost (it may have run: scripts are made so that a repeat is harmless), what was not yet written waits for the
    next connection.
  - No caller can corrupt the order of replies: a cancelled caller's reply is read and dropped.
  - No command waits longer than `timeout_s`: a silent connection is cut, so a half-open one cannot wedge a service. An idle
    one is tried every tenth of that time.
  - A server that has become a replica is left: the name is looked up anew, and may lead to the new primary.

Rejected: a pool (ten sockets, and the same cost a command), redis-py's pipelines gathered a turn at a time (four times the
cost), retrying inside the connection (only the caller knows whether its command may run twice).
"""

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from shared.clock import monotonic_s
from shared.errors import (
    BusError,
    BusUnavailable,
    ClusterRedirect,
    CommandRefused,
    ConnectionLost,
    MemoryFull,
    WrongKeyType,
)

log = logging.getLogger(__name__)

Arg = bytes | str | int
Reply = Any

TIMEOUT_S = 10.0
"""Longer than any command of ours takes on a loaded server; shorter than a lease plus its margin."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
"""Full-jitter backoff between attempts to connect: a restarted Redis is found within two seconds, and not stormed."""


def translate(error: BaseException) -> BusError:
    """Errors of redis-py as ours: the one boundary."""
    if isinstance(error, BusError):
        return error
    if isinstance(error, ResponseError):
        text = f"{error.status_code} {error}" if error.status_code else str(error)  # redis-py cuts off codes it knows
        code = text.partition(" ")[0]
        if code in ("MOVED", "ASK"):
            return ClusterRedirect(f"{text}: this Redis is a cluster, which is not followed; name a plain server")
        return {"WRONGTYPE": WrongKeyType, "OOM": MemoryFull}.get(code, CommandRefused)(text)
    return ConnectionLost(f"{type(error).__name__}: {error}")


class Connection:
    """One socket shared by all callers of a process, kept open until `close`."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        timeout_s: float = TIMEOUT_S,
        greet: Callable[["Connection"], Awaitable[None]] | None = None,
    ) -> None:
        """`greet` runs after each connect, before any waiting command is sent (it loads scripts)."""
        pool = ConnectionPool.from_url(
            url,
            client_name=name,
            protocol=2,
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        self._link: Any = pool.make_connection()  # type: ignore[no-untyped-call]
        self._timeout_s = timeout_s
        self._greet = greet
        self._unsent: list[tuple[asyncio.Future[Reply], bytes, float]] = []
        self._unanswered: deque[tuple[asyncio.Future[Reply], float]] = deque()
        self._wake = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self.connected = asyncio.Event()
        self.last_error: BusError | None = None
        self.written_commands = 0

    # -- callers

    def send(self, *command: Arg) -> asyncio.Future[Reply]:
        """Queue a command for this turn's write. The future fails with a BusError."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if self._life is None:
            future.set_exception(BusUnavailable("the connection is closed"))
            return future
        packed = pack_command(command)  # type: ignore[arg-type] # its stub knows tuples of one
        self._unsent.append((future, packed, monotonic_s()))
        self._wake.set()
        return future

    async def call(self, *command: Arg) -> Reply:
        return await self.send(*command)

    def post(self, *command: Arg) -> None:
        """Queue a command whose outcome nobody waits for: what it does comes to pass again if it is lost."""
        self.send(*command).add_done_callback(_pass_over)

    # -- life

    def open(self) -> None:
        """Start connecting; commands may be sent at once and leave when the connection stands."""
        if self._life is None:
            self._life = asyncio.create_task(self._live(), name="bus connection")

    async def close(self) -> None:
        life, self._life = self._life, None
        if life is not None:
            life.cancel()
            await asyncio.wait([life])
        self._fail(BusUnavailable("the connection is closed"), unsent=True)
        await self._link.disconnect(nowait=True)

    async def _live(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):  # a frozen server accepts, and never answers the handshake
                    await self._link.connect()
                pause_s = FIRST_PAUSE_S
                await self._serve()
            except Exception as error:  # noqa: BLE001 - whatever it is: without this task all callers would wait for ever
                self.last_error = translate(error)
                level = logging.WARNING if self.connected.is_set() else logging.DEBUG  # whoever waits tells why
                log.log(level, "redis connection lost: %s", self.last_error)
            finally:
                self.connected.clear()
            self._fail(self.last_error or ConnectionLost("closed"), unsent=False)
            self._fail_stale()
            await self._link.disconnect(nowait=True)
            await asyncio.sleep(random.uniform(0, pause_s))
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    async def _serve(self) -> None:
        """Run the reader, the writer and the watchdog until the first of them fails."""
        waiting, self._unsent = self._unsent, []
        tasks = [asyncio.create_task(part) for part in (self._read(), self._write(), self._watch())]
        try:
            if self._greet is not None:
                await _first_of(self._greet(self), tasks)
            self._unsent[:0] = waiting
            waiting = []
            self._wake.set()
            self.connected.set()
            self.last_error = None
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._unsent[:0] = waiting
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._unsent = self._unsent, []
            data: list[bytes] = []
            written_at_s = monotonic_s()
            for future, command, _ in batch:
                if not future.done():
                    data.append(command)
                    self._unanswered.append((future, written_at_s))
                    self.written_commands += 1
            if data:
                await self._link.send_packed_command(data, check_health=False)

    async def _read(self) -> None:
        read = self._link.read_response
        unanswered = self._unanswered
        while True:
            refusal = None
            try:
                reply = await read(timeout=math.inf)
            except ResponseError as error:
                refusal = translate(error)
            if not unanswered:
                raise ConnectionLost("Redis answered what nobody asked")
            future, _ = unanswered.popleft()
            if not future.done():
                if refusal is None:
                    future.set_result(reply)
                else:
                    future.set_exception(refusal)
            if refusal is not None and str(refusal).startswith("READONLY"):
                raise ConnectionLost("this server has become a replica")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._timeout_s / 10)
            if not self._unanswered:
                self.post("PING")  # or an idle connection would find out that it is dead only when it is needed
            elif monotonic_s() - self._unanswered[0][1] > self._timeout_s:
                raise TimeoutError(f"no answer from Redis for {self._timeout_s:g} s")

    def _fail(self, error: BusError, *, unsent: bool) -> None:
        failed = [future for future, _ in self._unanswered]
        self._unanswered.clear()
        if unsent:
            failed += [future for future, _, _ in self._unsent]
            self._unsent.clear()
        for future in failed:
            if not future.done():
                future.set_exception(type(error)(*error.args))

    def _fail_stale(self) -> None:
        """Commands that waited too long for a connection fail, so their callers can say so."""
        oldest_s = monotonic_s() - self._timeout_s
        stale = [item for item in self._unsent if item[2] < oldest_s]
        self._unsent = [item for item in self._unsent if item[2] >= oldest_s]
        for future, _, _ in stale:
            if not future.done():
                future.set_exception(BusUnavailable(f"Redis is out of reach: {self.last_error}"))


def _pass_over(future: asyncio.Future[Reply]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.debug("ignored: %s", error)


async def _first_of(work: Awaitable[None], guards: list[asyncio.Task[None]]) -> None:
    """Await `work`, unless one of `guards` ends first: then its error is raised."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task, *guards], return_when=asyncio.FIRST_COMPLETED)
        for guard in guards:
            if guard.done() and not task.done():
                guard.result()
        await task
    finally:
        task.cancel()
