"""The connections of one process, and how its scripts run on them."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from shared.bus import check
from shared.bus.connection import Arg, Connection, Reply
from shared.bus.durability import Confirming
from shared.bus.script import Script
from shared.clock import monotonic_s
from shared.config import Safety
from shared.errors import BusError, BusUnavailable, CommandRefused, ConfigError, ConnectionLost

log = logging.getLogger(__name__)

BLOCK_MS = 1000
"""How long a read waits on the server. A pass of a read loop ends at least this often, which is what liveness means."""
TELL_AFTER_S = 1.0
"""Without Redis at the start of a service, until its log says so: a Redis that starts together with it needs no line."""
PATIENCE_S = 10.0
"""How long a script call is repeated while Redis is out of reach, unless the caller says otherwise."""
FAST = Safety()


class Bus:
    """Two shared connections: `commands` for small replies in order, `bulk` for bodies and logs. Readers get their own, and
    so do durable calls, unless the durability is `fast`."""

    def __init__(self, url: str, *, name: str, safety: Safety = FAST) -> None:
        self._url, self._name, self._safety = url, name, safety
        self.commands = Connection(url, name=name, greet=load_scripts)
        self.bulk = Connection(url, name=f"{name}-bulk", greet=load_scripts)
        self._confirming: Confirming | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for connection in (self.commands, self.bulk):
            self._open(connection)
        if self._safety.durability != "fast":
            self._confirming = self._durable()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def reach(self) -> None:
        """Return once Redis answers, however long that takes. What keeps it from that is told, once.

        Raises: ConfigError if this Redis cannot keep the durability asked for; CommandRefused if it may not be asked.
        """
        told = None
        while True:
            try:
                async with asyncio.timeout(TELL_AFTER_S):
                    await self.commands.connected.wait()
                    await self.bulk.connected.wait()
                if self._safety.durability != "fast":
                    await self._check()
                return
            except TimeoutError:
                reason = self.fault()
            except BusError as error:
                if isinstance(error, CommandRefused) and not is_passing(error):
                    raise
                reason = str(error)
                await asyncio.sleep(TELL_AFTER_S)
            if reason not in (None, told):
                log.warning("cannot start yet: %s", reason)
                told = reason

    def fault(self) -> str | None:
        """Why Redis cannot be used just then, or None."""
        if self.commands.connected.is_set() and self.bulk.connected.is_set():
            return None
        return f"Redis is out of reach: {self.commands.last_error or self.bulk.last_error or 'no answer'}"

    def reader(self, purpose: str) -> Connection:
        """A connection for blocking reads, opened here and closed with the bus."""
        return self._open(Connection(self._url, name=f"{self._name}-{purpose}"))

    def _open(self, connection: Connection) -> Connection:
        connection.open()
        self._stack.push_async_callback(connection.close)
        return connection

    async def _check(self) -> None:
        info, appendfsync, has_waitaof = await read_state(self.commands)
        if found := check.faults(self._safety, info, appendfsync, has_waitaof=has_waitaof):
            raise ConfigError("\n".join(found))
        for warning in check.warnings(self._safety, info):
            log.warning("%s", warning)

    def _durable(self) -> Confirming:
        async def greet(connection: Connection) -> None:
            await asyncio.gather(load_scripts(connection), confirming.greet())

        confirming = Confirming(Connection(self._url, name=f"{self._name}-durable", greet=greet), self._safety)
        self._open(confirming.connection)
        return confirming

    async def run(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Arg],
        *,
        bulk: bool = False,
        durable: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> Reply:
        """Run a script, repeating it over lost connections: a repeat of the same call answers the same.

        `durable`: return only when what it wrote is kept as the configured durability says.

        Raises: BusUnavailable after `patience_s`, CommandRefused.
        """
        connection, send = self._way(bulk, durable)
        return await self._repeat(connection, send, script.command(keys, args), script.name, patience_s)

    async def read(self, *command: Arg) -> Reply:
        """Run a command that changes nothing, repeating it in the same way, beside bodies and logs.

        Raises: BusUnavailable, CommandRefused.
        """
        return await self._repeat(self.bulk, self.bulk.send, command, str(command[0]), PATIENCE_S)

    async def time_ms(self) -> int:
        """Unix ms, as Redis has it: the clocks of those who share a key may differ, and jump. Raises: BusError."""
        seconds, microseconds = await self.commands.call("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def _repeat(
        self,
        connection: Connection,
        send: Callable[..., Awaitable[Reply]],
        command: Sequence[Arg],
        name: str,
        patience_s: float,
    ) -> Reply:
        give_up_at_s, pause_s, scripts_lost = monotonic_s() + patience_s, 0.02, False
        while True:
            try:
                if scripts_lost:
                    await load_scripts(connection)
                return await send(*command)
            except CommandRefused as error:
                if not is_passing(error):
                    raise
                scripts_lost = str(error).startswith("NOSCRIPT")
                last: BusError = error
            except (ConnectionLost, BusUnavailable) as error:
                last = error
            if monotonic_s() > give_up_at_s:
                raise BusUnavailable(f"{name}: {last}") from last
            await asyncio.sleep(random.uniform(0, pause_s))
            pause_s = min(1.0, pause_s * 2)

    def _way(self, bulk: bool, durable: bool) -> tuple[Connection, Callable[..., Awaitable[Reply]]]:
        if durable and self._confirming is not None:
            return self._confirming.connection, self._confirming.call
        connection = self.bulk if bulk else self.commands
        return connection, connection.send


PASSING = frozenset(
    ("NOSCRIPT", "READONLY", "LOADING", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "BUSY", "UNKILLABLE", "MISCONF", "NOREPLICAS")
)  # fmt: skip
"""Answers that say nothing about the call itself: the server is restarting, failing over, busy, or cannot write its file."""


def is_passing(error: CommandRefused) -> bool:
    return str(error).partition(" ")[0] in PASSING


async def load_scripts(connection: Connection) -> None:
    await asyncio.gather(*(connection.send("SCRIPT", "LOAD", s.source) for s in Script.registry.values()))


async def read_state(connection: Connection) -> tuple[check.Info, str, bool]:
    """INFO, `appendfsync` ('' if it may not be read), and whether there is WAITAOF."""
    info = check.parse_info(await connection.call("INFO"))
    (known,) = await connection.call("COMMAND", "INFO", "WAITAOF")
    try:
        policy = (await connection.call("CONFIG", "GET", "appendfsync"))[1].decode()
    except (CommandRefused, IndexError):  # managed servers hide it
        policy = ""
    return info, policy, bool(known)
