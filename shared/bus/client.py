"""The connections of one process, and how its scripts run on them."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from shared.bus.connection import Arg, Connection, Reply
from shared.bus.script import Script
from shared.clock import monotonic_s
from shared.errors import BusError, BusUnavailable, CommandRefused, ConnectionLost

BLOCK_MS = 1000
"""How long a read waits on the server. A pass of a read loop ends at least this often, which is what liveness means."""
PATIENCE_S = 10.0
"""How long a script call is repeated while Redis is out of reach, unless the caller says otherwise."""


class Bus:
    """Two shared connections: `commands` for small replies in order, `bulk` for bodies and logs. Readers get their own."""

    def __init__(self, url: str, *, name: str) -> None:
        self._url, self._name = url, name
        self.commands = Connection(url, name=name, greet=load_scripts)
        self.bulk = Connection(url, name=f"{name}-bulk", greet=load_scripts)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for connection in (self.commands, self.bulk):
            connection.open()
            self._stack.push_async_callback(connection.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def reader(self, purpose: str) -> Connection:
        """A connection for blocking reads, opened here and closed with the bus."""
        connection = Connection(self._url, name=f"{self._name}-{purpose}")
        connection.open()
        self._stack.push_async_callback(connection.close)
        return connection

    async def run(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Arg],
        *,
        bulk: bool = False,
        patience_s: float = PATIENCE_S,
    ) -> Reply:
        """Run a script, repeating it over lost connections: a repeat of the same call answers the same.

        Raises: BusUnavailable after `patience_s`, CommandRefused.
        """
        connection = self.bulk if bulk else self.commands
        command = script.command(keys, args)
        give_up_at_s, pause_s = monotonic_s() + patience_s, 0.02
        while True:
            try:
                return await connection.send(*command)
            except CommandRefused as error:
                if not is_passing(error):
                    raise
                await repair(connection, error)
                last: BusError = error
            except (ConnectionLost, BusUnavailable) as error:
                last = error
            if monotonic_s() > give_up_at_s:
                raise BusUnavailable(f"{script.name}: {last}") from last
            await asyncio.sleep(random.uniform(0, pause_s))
            pause_s = min(1.0, pause_s * 2)


PASSING = ("NOSCRIPT", "READONLY", "LOADING", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "BUSY ", "UNKILLABLE")
"""Answers that say nothing about the call itself: the server is restarting, failing over or busy."""


def is_passing(error: CommandRefused) -> bool:
    return str(error).startswith(PASSING)


async def repair(connection: Connection, error: CommandRefused) -> None:
    if str(error).startswith("NOSCRIPT"):
        await load_scripts(connection)


async def load_scripts(connection: Connection) -> None:
    await asyncio.gather(*(connection.send("SCRIPT", "LOAD", s.source) for s in Script.registry.values()))
