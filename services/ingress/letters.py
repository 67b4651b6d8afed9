"""Dead letters: the `dead` streams of all shards, read as one list, newest first."""

import asyncio
import re
from collections import deque
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from shared.bus.client import Bus
from shared.errors import UNDECODABLE
from shared.keys import ShardKeys, shard_keys
from shared.messages import Task, decode_task
from shared.record import Attempt

TASK, REPLY, WEBHOOK = "task", "reply", "webhook"
ANY = "*"
READ = 10
"""Letters of a shard that are read at once: each may hold a body of 4 MiB."""
SCANNED = 1000
"""Letters that one request looks at, however few of them it wants: the caller goes on from the cursor."""

_SHAPE = re.compile(r"([a-z0-9-]{1,32})\.(\d{1,4}):(\d{1,20})-(\d{1,20})")
_LARGEST = 2**64 - 1


class Address(Struct, frozen=True, order=True):
    """Where a letter lies. The order of addresses is that of the list, backwards."""

    at_ms: int
    sequence: int
    pool: str
    shard: int

    @property
    def entry(self) -> str:
        return f"{self.at_ms}-{self.sequence}"

    @property
    def keys(self) -> ShardKeys:
        return shard_keys(self.pool, self.shard)

    def __str__(self) -> str:
        return f"{self.pool}.{self.shard}:{self.entry}"


def parse_address(text: str) -> Address | None:
    """None for what is no address of a letter."""
    match = _SHAPE.fullmatch(text)
    if match is None:
        return None
    pool, shard, at_ms, sequence = match.groups()
    address = Address(int(at_ms), int(sequence), pool, int(shard))
    return address if max(address.at_ms, address.sequence) <= _LARGEST else None


class Letter(Struct, frozen=True, kw_only=True):
    address: Address
    kind: str
    """`task`: a task that was given up. `reply`: a reply that could not be delivered. `webhook`: an event that could not."""
    task_id: str
    code: str
    reason: str
    history: list[Attempt]
    tenant: str
    """Empty: it cannot be read whose it is."""
    task: Task | None
    """None in the letter of a reply or a webhook, and in one that cannot be read."""
    body: bytes
    delivery: bytes = b""
    """In the letter of a webhook: the message that its stream is given again."""


class Wanted(Struct, frozen=True):
    """What a letter must have. A pool is not asked for here: it decides which streams are read."""

    code: str = ANY
    model: str = ANY
    tenant: str = ANY

    def takes(self, letter: Letter) -> bool:
        model = letter.task.model if letter.task is not None else ""
        wanted = ((self.code, letter.code), (self.model, model), (self.tenant, letter.tenant))
        return all(asked in (ANY, said) for asked, said in wanted)


class Scan:
    """The letters that one request is about: at most `limit`, from behind `after` on.

        while (letter := await scan.next()) is not None: …

    A letter counts as dealt with when the next one is asked for: whoever stops before goes on with it, from `last`.
    """

    def __init__(
        self, bus: Bus, shards: Sequence[ShardKeys], wanted: Wanted, *, after: Address | None, limit: int
    ) -> None:
        self.shards = shards
        self._piles = [_Pile(bus, shard, after) for shard in shards]
        self._wanted, self._limit = wanted, limit
        self._given: Address | None = None
        self.last = after
        self.scanned = self.taken = 0
        self.more = True

    async def next(self) -> Letter | None:
        """None at the end; then `more` tells whether there are letters behind `last`."""
        if self._given is not None:
            self.last, self._given = self._given, None
        while (letter := await self._top()) is not None:
            if self.taken == self._limit or self.scanned == SCANNED:
                return None
            self._pop(letter)
            self.scanned += 1
            if self._wanted.takes(letter):
                self.taken += 1
                self._given = letter.address
                return letter
            self.last = letter.address
        self.more = False
        return None

    async def _top(self) -> Letter | None:
        await asyncio.gather(*(pile.fill() for pile in self._piles if not pile.letters))
        self._piles = [pile for pile in self._piles if pile.letters]
        tops = [pile.letters[0] for pile in self._piles]
        return max(tops, key=lambda letter: letter.address, default=None)

    def _pop(self, letter: Letter) -> None:
        next(pile for pile in self._piles if pile.letters[0] is letter).letters.popleft()


class _Pile:
    """The letters of one shard, a few at a time."""

    def __init__(self, bus: Bus, shard: ShardKeys, after: Address | None) -> None:
        self._bus, self._shard = bus, shard
        self._start = "+" if after is None else after.entry
        if after is not None and (shard.pool, shard.shard) >= (after.pool, after.shard):
            self._start = f"({after.entry}"
        self.letters: deque[Letter] = deque()

    async def fill(self) -> None:
        found = await self._bus.bulk.call("XREVRANGE", self._shard.dead, self._start, "-", "COUNT", READ)
        self.letters += (read_letter(self._shard, entry, values) for entry, values in found)
        if self.letters:
            self._start = f"({self.letters[-1].address.entry}"


def read_letter(shard: ShardKeys, entry: bytes, values: list[bytes]) -> Letter:
    fields = dict(zip(values[::2], values[1::2], strict=True))
    at_ms, sequence = entry.split(b"-")

    def text(name: bytes, default: bytes = b"") -> str:
        return fields.get(name, default).decode(errors="replace")

    task = _task(fields.get(b"spec", b""))
    return Letter(
        address=Address(int(at_ms), int(sequence), shard.pool, shard.shard),
        kind=text(b"k", REPLY.encode()),
        task_id=text(b"t"),
        code=text(b"code"),
        reason=text(b"reason"),
        history=_attempts(fields.get(b"history", b"")),
        tenant=text(b"tenant") if task is None else task.tenant,
        task=task,
        body=fields.get(b"body", b""),
        delivery=fields.get(b"delivery", b""),
    )


_history = msgspec.json.Decoder(Attempt)


def _attempts(lines: bytes) -> list[Attempt]:
    try:
        return _history.decode_lines(lines)
    except UNDECODABLE:
        return []


def _task(spec: bytes) -> Task | None:
    try:
        return decode_task(spec) if spec else None
    except UNDECODABLE:
        return None
