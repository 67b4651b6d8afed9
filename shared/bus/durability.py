"""Writes that are confirmed by more than the memory of one server.

    fast         Redis' own word; its append-only file decides what a crash leaves (everysec: about the last second is lost)
    replicated   WAIT: replicas have it in memory
    synced       WAITAOF: it is on the disk of the server, and of replicas if so asked. Redis 7.0 has no WAITAOF: there
                 `appendfsync always` is needed, which answers nothing before it is on the disk

WAIT blocks its connection, so these calls have one of their own. What is asked for while it is blocked shares the next WAIT.

Invariants
  - A group is one write on one connection: scripts, mark, WAIT. The mark is there because the server waits for the last
    write of the *connection*: a repeat that finds all done already has written nothing, and would be confirmed at once.
  - What is not confirmed is not known: it may have been written, and may be lost again. The caller repeats it.
"""

import asyncio
from collections.abc import Sequence

from shared.bus.batch import Batcher
from shared.bus.connection import Arg, Connection, Reply
from shared.bus.script import Script
from shared.config import Safety
from shared.errors import BusError, CommandRefused, NotConfirmed
from shared.keys import MARK

MARKING = Script("shared", "mark")
MARK_KEPT_MS = 1000
CONFIRM_MS = 2000
"""Twice the second within which `everysec` syncs."""

Command = list[Arg]


class Confirming:
    """Runs commands in groups, each confirmed as a whole."""

    def __init__(self, connection: Connection, safety: Safety) -> None:
        self.connection = connection
        self._safety = safety
        self._confirm, self._wanted = confirmation(safety, has_waitaof=True)
        self._groups: Batcher[Command, Reply | BusError] = Batcher(self._send)

    async def greet(self) -> None:
        """After each connect: another node may know other commands."""
        (known,) = await self.connection.call("COMMAND", "INFO", "WAITAOF")
        self._confirm, self._wanted = confirmation(self._safety, has_waitaof=bool(known))

    async def call(self, *command: Arg) -> Reply:
        """Raises: NotConfirmed; and as Connection.send."""
        reply = await self._groups.add(list(command))
        if isinstance(reply, BusError):
            raise reply
        return reply

    async def _send(self, commands: Sequence[Command]) -> list[Reply | BusError]:
        mark = MARKING.command([MARK], [MARK_KEPT_MS])
        sent = [self.connection.send(*command) for command in (*commands, mark, self._confirm)]
        *replies, marked, confirmed = await asyncio.gather(*sent, return_exceptions=True)
        failure = marked if isinstance(marked, BaseException) else self._shortfall(confirmed)
        return [reply if failure is None or isinstance(reply, BusError) else failure for reply in replies]

    def _shortfall(self, confirmed: Reply | BaseException) -> BaseException | None:
        """What the answer to WAIT or WAITAOF lacks."""
        if isinstance(confirmed, CommandRefused):  # appendonly was switched off, say
            return NotConfirmed(str(confirmed))
        if isinstance(confirmed, BaseException):
            return confirmed
        counts = confirmed if isinstance(confirmed, list) else [confirmed]
        if all(count >= wanted for count, wanted in zip(counts, self._wanted, strict=True)):
            return None
        return NotConfirmed(
            f"{self._confirm[0]!s} counts {counts} copies within {CONFIRM_MS} ms, wanted {self._wanted}"
        )


def confirmation(safety: Safety, *, has_waitaof: bool) -> tuple[Command, list[int]]:
    """The command behind a group, and the counts that must come back."""
    if safety.durability == "synced" and has_waitaof:
        return ["WAITAOF", 1, safety.replicas, CONFIRM_MS], [1, safety.replicas]
    replicas = safety.replicas if safety.durability == "synced" else max(1, safety.replicas)
    return ["WAIT", replicas, CONFIRM_MS], [replicas]
