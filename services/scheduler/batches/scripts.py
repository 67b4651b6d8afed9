"""Typed twins of the scripts that only the holder of a batch runs."""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import astuple

from shared import keys
from shared.batches import End, Fence, told
from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.script import Script
from shared.bus.streams import LOOP_PATIENCE_S

LEASE = Script("services.scheduler", "batch_lease")
FEED = Script("services.scheduler", "batch_feed")
END = Script("services.scheduler", "batch_end")


class Opened(Struct, frozen=True):
    """The arguments of one item of `batch_feed.lua`, in its order."""

    number: int
    item: bytes


class Ended(Struct, frozen=True):
    """The arguments of one item of `batch_end.lua`, in its order."""

    number: int
    end: End


class Segment(Struct, frozen=True):
    """The arguments of `batch_end.lua` that all its items share, behind the fence."""

    name: str
    output_bytes: int
    error_bytes: int
    output_lines: int
    error_lines: int
    tokens_in: int
    tokens_out: int
    tasks: bytes
    """How long each task is kept from then on (ms), as JSON."""


async def lease(bus: Bus, batch_id: str, nonce: str, lease_ms: int) -> str:
    """See batch_lease.lua; `lease_ms` 0 gives it back. Raises: WrongKeyType, BusError."""
    names = [keys.batch(batch_id, "state")]
    args: list[Arg] = [nonce, lease_ms]
    return told(await bus.run(LEASE, names, args, durable=True, patience_s=LOOP_PATIENCE_S))


async def feed(
    bus: Bus, batch_id: str, fence: Fence, before: int, behind: int, lines: int, items: Sequence[Opened]
) -> str:
    """See batch_feed.lua. Raises: WrongKeyType, BusError."""
    names = [keys.batch(batch_id, what) for what in ("state", "open")]
    args: list[Arg] = [*astuple(fence), before, behind, lines]
    for item in items:
        args += astuple(item)
    return told(await bus.run(FEED, names, args, durable=True))


async def end(bus: Bus, batch_id: str, fence: Fence, segment: Segment, items: Sequence[Ended]) -> str:
    """See batch_end.lua. Raises: WrongKeyType, BusError."""
    names = [keys.batch(batch_id, what) for what in ("state", "open", "ended", "unfiled")]
    args: list[Arg] = [*astuple(fence), *astuple(segment)]
    for item in items:
        args += astuple(item)
    return told(await bus.run(END, names, args, durable=True))
