"""Typed twins of the scripts on streams. They run also when memory is full: the system must be able to drain."""

from collections.abc import Mapping, Sequence

from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.script import Script

APPEND = Script("shared", "append")
FORGET = Script("shared", "forget")
GROUP = Script("shared", "group")
JOIN = Script("shared", "join")

MOST_FIELDS = 1000
"""Of one entry that we write: Lua unpacks some thousands of arguments at most."""

LOOP_PATIENCE_S = 1.0
"""Loops come again by themselves, and tell meanwhile what is wrong."""


async def append(bus: Bus, stream: str, fields: Mapping[Arg, Arg], *, most_kept: int = 0) -> bytes:
    """Add an entry; its id. `most_kept` 0: the stream is never trimmed. Raises: WrongKeyType, BusError."""
    args: list[Arg] = [most_kept]
    for field, value in list(fields.items())[:MOST_FIELDS]:
        args += (field, value)
    return bytes(await bus.run(APPEND, [stream], args))


async def ensure_group(bus: Bus, stream: str, group: str) -> None:
    """Make a group that is given the stream from its first entry on, unless it stands. Raises: WrongKeyType, BusError."""
    await bus.run(GROUP, [stream], [group], patience_s=LOOP_PATIENCE_S)


async def forget(bus: Bus, stream: str, group: str, *, silent_ms: int, own: str) -> int:
    """Remove the consumers of a group that were killed, except `own`; how many. Raises: BusError."""
    return int(await bus.run(FORGET, [stream], [group, silent_ms, own], patience_s=LOOP_PATIENCE_S))


async def join(
    bus: Bus, readers: str, streams: Sequence[str], group: str, lease_ms: int, processed: Sequence[bytes]
) -> list[bytes]:
    """Lease a reader and set its groups; the ids they stand at. An empty id begins at the end of its stream."""
    return list(await bus.run(JOIN, [readers, *streams], [group, lease_ms, *processed], patience_s=LOOP_PATIENCE_S))
