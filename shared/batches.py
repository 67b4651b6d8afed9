"""Batches as their hash tells them: one way to make, read, list and stop them, for ingress and the scheduler.

A batch is a file of requests and what becomes of each. services/scheduler/batches says how it is fed.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Raw, Struct

from shared import keys
from shared.bus.client import Bus
from shared.bus.connection import Arg, Reply
from shared.bus.script import Script
from shared.errors import UNDECODABLE, BatchNotFound, HeadraceError, IdempotencyConflict, WrongKeyType
from shared.messages import NULL

MAKE = Script("shared", "batch_make")
MOVE = Script("shared", "batch_move")

DAY_S = 24 * 3600
LONGEST_WINDOW_S = 30 * DAY_S
"""As long as files are kept by default."""

_ID = re.compile(r"batch_[0-9a-f]{32}")


class Status(StrEnum):
    """As the OpenAI API names them. Values are also the names of the fields `<status>_at_ms`."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        return self in ENDS


ENDS = (Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXPIRED)
STOPPABLE = (Status.VALIDATING, Status.IN_PROGRESS)
UNDER_WAY = (*STOPPABLE, Status.FINALIZING, Status.CANCELLING)


FILES = ("output", "errors")
"""What a batch writes: lines of completed items, lines of the others."""


class End(StrEnum):
    """How an item ends; also the name of its count."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Fault(Struct, frozen=True, kw_only=True):
    """What is wrong with a line of the input, as the OpenAI API tells it."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None
    """Of the input file, from 1; none: it is about the file."""


class Asked(Struct, frozen=True, kw_only=True):
    """What a client asks a batch for."""

    tenant: str
    key: str
    """Name of the API key."""
    endpoint: str
    input_file_id: str
    window: str
    """As it was asked for: `24h`."""
    window_s: int
    metadata: Raw = NULL
    output_kept_s: int = 0
    """Of the output and error files, from the end of the window; 0: as long as other files."""
    webhook: str = ""
    """Who is told of its end."""


class Batch(Struct, frozen=True, kw_only=True):
    """Times are Unix milliseconds; 0: that has not been."""

    id: str
    status: Status
    tenant: str
    key: str
    endpoint: str
    input_file_id: str
    window: str
    metadata: Raw
    output_kept_s: int
    created_at_ms: int
    expires_at_ms: int
    at_ms: dict[Status, int]
    model: str
    """Of the first valid line."""
    faults: list[Fault]
    """Why it failed as a whole; some of them, if there are many."""
    total: int
    """Items; known once they are validated, or as the file was uploaded."""
    fed: int
    """Of these, so many are open or have ended."""
    ended: dict[End, int]
    output_lines: int
    error_lines: int
    tokens_in: int
    tokens_out: int
    offset: int
    """Bytes of the input that were fed."""
    lines: int
    """Lines of it, empty ones included."""
    segments: int
    salt: str = ""
    """Part of what its tasks' ids follow from: the batch's own may be computed by who guesses its key, and whoever knows the id of a
    task may cancel it before it comes."""
    webhook: str = ""
    """Who is to be told of its end. Empty: nobody, or it was told."""


_TIMES = {status: f"{status}_at_ms" for status in Status}
_TEXTS = (
    *("status", "tenant", "key", "endpoint", "input_file_id", "window", "metadata", "model", "faults", "salt"),
    "webhook",
)
_NUMBERS = (
    *("output_kept_s", "created_at_ms", "expires_at_ms", "total", "fed", *End, "output_lines", "error_lines"),
    *("tokens_in", "tokens_out", "offset", "lines", "segments", *_TIMES.values()),
)
_FIELDS = (*_TEXTS, *_NUMBERS)
_faults = msgspec.json.Decoder(list[Fault])


class Batches:
    def __init__(self, bus: Bus, kept_s: int) -> None:
        """`kept_s`: how long a batch can be asked for after its end."""
        self._bus, self.kept_ms = bus, kept_s * 1000

    async def make(self, asked: Asked, *, key: str = "", total: int = 0) -> Batch:
        """`key`: makes a repeat find the same batch. `total`: lines of the file, as far as they are known.

        The indexes come first: an entry that leads nowhere is dropped, a batch that nobody finds would wait for ever. It is looked at
        soon, also if its id was that of another one, which has expired.
        Raises: IdempotencyConflict, WrongKeyType, BusError.
        """
        batch_id, at_ms, index = new_id(asked.tenant, key), await self._bus.time_ms(), keys.batches_of(asked.tenant)
        await self._bus.commands.call("ZADD", index, "NX", at_ms, batch_id)
        longest_ms = LONGEST_WINDOW_S * 1000 + self.kept_ms
        await self._bus.commands.call("ZREMRANGEBYSCORE", index, "-inf", at_ms - longest_ms)
        await self._bus.commands.call("PEXPIRE", index, longest_ms)
        await self._bus.commands.call("ZADD", keys.BATCHES, at_ms, batch_id)
        verdict = await make(self._bus, batch_id, asked, total)
        if verdict == "conflict":
            raise IdempotencyConflict(key)
        return await self.read(batch_id)

    async def read(self, batch_id: str) -> Batch:
        """Raises: BatchNotFound, BusError."""
        if _ID.fullmatch(batch_id) is None:
            raise BatchNotFound(batch_id)
        return parse(batch_id, await self._bus.read("HMGET", keys.batch(batch_id, "state"), *_FIELDS))

    async def newest(self, tenant: str, after: str, limit: int) -> list[Batch]:
        """The batches of a tenant, the newest first, behind the batch `after`. Raises: BatchNotFound, BusError."""
        index, found = keys.batches_of(tenant), list[Batch]()
        first = 0
        if after:
            place = await self._bus.read("ZREVRANK", index, after)
            if place is None:
                raise BatchNotFound(after)
            first = int(place) + 1
        while len(found) < limit:
            page = await self._bus.read("ZREVRANGE", index, first, first + limit - len(found) - 1)
            if not page:
                break
            first += len(page)
            for batch_id in page:
                try:
                    found.append(await self.read(batch_id.decode()))
                except BatchNotFound:  # it has expired, and goes with the index
                    continue
        return found

    async def cancel(self, batch_id: str) -> Batch:
        """Ask for it: what runs is told to stop, what was not begun never is. Harmless when repeated.

        Raises: BatchNotFound, WrongKeyType, BusError.
        """
        if _ID.fullmatch(batch_id) is None:
            raise BatchNotFound(batch_id)
        await move(self._bus, batch_id, None, STOPPABLE, Status.CANCELLING)
        return await self.read(batch_id)


class Fence(Struct, frozen=True):
    """What only the holder of a batch's lease knows."""

    epoch: int
    nonce: str


def new_id(tenant: str = "", key: str = "") -> str:
    """An id that nobody guesses, unless they guess the key: the same one for the same key of a tenant."""
    digest = hashlib.blake2b(f"{tenant}/{key}".encode(), digest_size=16).hexdigest() if key else secrets.token_hex(16)
    return f"batch_{digest}"


def file_id_of(batch_id: str, kind: str) -> str:
    """Of a batch's output or errors: it follows from the batch, so that a repeat makes the same file."""
    return "file-" + hashlib.blake2b(f"{batch_id} {kind}".encode(), digest_size=16).hexdigest()


async def make(bus: Bus, batch_id: str, asked: Asked, total: int) -> str:
    """The twin of batch_make.lua. A repeat changes nothing, so a batch keeps its first salt."""
    fields: dict[str, Arg] = {
        "tenant": asked.tenant,
        "key": asked.key,
        "endpoint": asked.endpoint,
        "input_file_id": asked.input_file_id,
        "window": asked.window,
        "metadata": bytes(asked.metadata),
        "output_kept_s": asked.output_kept_s,
        "total": total,
        "salt": secrets.token_hex(16),
        "webhook": asked.webhook,
    }
    fingerprint = hashlib.blake2b(msgspec.json.encode(asked), digest_size=16).hexdigest()
    args = [asked.window_s * 1000, fingerprint, *flat(fields)]
    return told(await bus.run(MAKE, [keys.batch(batch_id, "state")], args, durable=True))


async def move(
    bus: Bus,
    batch_id: str,
    fence: Fence | None,
    allowed: Sequence[Status],
    to: Status,
    *,
    kept_ms: int = 0,
    fields: Mapping[str, Arg] | None = None,
) -> str:
    """The twin of batch_move.lua; `fence` None: a client asks, `kept_ms`: it ends, and is kept for so long.

    Raises: BatchNotFound, WrongKeyType, BusError.
    """
    names = [keys.batch(batch_id, what) for what in ("state", "open", "ended", "unfiled")]
    holder: tuple[Arg, Arg] = (fence.epoch, fence.nonce) if fence is not None else ("", "")
    args: list[Arg] = [*holder, kept_ms, ",".join(allowed), to, *flat(fields or {})]
    verdict = told(await bus.run(MOVE, names, args, durable=True))
    if verdict == "unknown":
        raise BatchNotFound(batch_id)
    return verdict


def flat(fields: Mapping[str, Arg]) -> list[Arg]:
    return [part for pair in fields.items() for part in pair]


def told(verdict: bytes) -> str:
    """Raises: WrongKeyType."""
    text = verdict.decode()
    if text.startswith("wrongtype"):
        raise WrongKeyType(f"the key {text.partition(' ')[2]} holds a type that is not Headrace's; remove it")
    return text


def parse(batch_id: str, values: Sequence[Reply]) -> Batch:
    """The answer to HMGET of the fields. Raises: BatchNotFound; HeadraceError for a hash that is not ours."""
    said = dict(zip(_FIELDS, values, strict=True))
    if said["status"] is None:
        raise BatchNotFound(batch_id)
    try:
        texts: dict[str, Any] = {name: (said[name] or b"").decode() for name in _TEXTS}
        numbers: dict[str, Any] = {name: int(said[name] or 0) for name in _NUMBERS}
        return Batch(
            id=batch_id,
            status=Status(texts.pop("status")),
            metadata=Raw(texts.pop("metadata") or b"null"),
            faults=_faults.decode(texts.pop("faults") or b"[]"),
            at_ms={status: numbers.pop(name) for status, name in _TIMES.items()},
            ended={end: numbers.pop(end) for end in End},
            **texts,
            **numbers,
        )
    except (*UNDECODABLE, ValueError, TypeError) as error:
        raise HeadraceError(f"the hash of the batch holds what no script of Headrace writes: {error}") from None
