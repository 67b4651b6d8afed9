"""Batches in a test: the real scripts, an object store in a folder, and an engine that ends what was fed."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from services.inference.scripts import Ending, Hand, Owner, Running, beat, start
from services.notifier.outbox import Outbox
from services.scheduler.batches.feeder import Feeder
from services.scheduler.batches.scripts import lease
from services.scheduler.batches.store import Store
from services.scheduler.batches.work import Tools
from services.scheduler.scripts import admit, dispatch
from shared import keys
from shared.batches import Asked, Batch, Batches, Fence, file_id_of
from shared.bus.client import Bus
from shared.bus.connection import Arg, Reply
from shared.bus.consume import Entry
from shared.bus.script import Script
from shared.cancel import Canceller
from shared.config import Config, Limits
from shared.errors import ConnectionLost, ErrorBody, FileNotFound, StoreUnavailable
from shared.files import Files
from shared.ids import new_nonce
from shared.lifecycle import State
from shared.messages import Finished, encode
from shared.objects import Objects
from shared.quota import Quotas
from shared.submit import Submitter
from tests.support import tasks
from tests.support.waiting import wait_until

CONFIG = Config(pools=tasks.CONFIG.pools, limits=Limits(batch_window=8, lease_s=1))
CHAT = "/v1/chat/completions"
FAILS = "this one fails"


class Fate:
    """A feeder dies at its nth step: a script call or a write to the object store, before it is done or after it.

    Without a `victim` nobody dies: the connection is lost there, with what was asked or with the answer.
    """

    def __init__(self, dies_at: int = 0, *, after: bool = False) -> None:
        self.steps, self._dies_at, self._after = 0, dies_at, after
        self.victim: asyncio.Task[None] | None = None
        self.away = False
        """The object store is."""

    def before(self) -> bool:
        """Whether this is the step; raises if it is not to be done."""
        self.steps += 1
        if self.steps != self._dies_at:
            return False
        if not self._after:
            self._kill()
            raise ConnectionLost("killed")
        return True

    def after(self, fatal: bool) -> None:
        if fatal:
            self._kill()
        if fatal and self.victim is None:
            raise ConnectionLost("lost the answer")

    def _kill(self) -> None:
        if self.victim is not None:
            self.victim.cancel()


class MortalBus(Bus):
    fate = Fate()

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg], **how: Any) -> Reply:
        fatal = self.fate.before()
        answer = await super().run(script, keys, args, **how)
        self.fate.after(fatal)
        return answer


class MortalObjects(Objects):
    fate = Fate()

    async def read(self, key: str, start: int = 0, *, size: int | None = None) -> AsyncGenerator[bytes, None]:
        self._check()
        async for piece in super().read(key, start, size=size):
            yield piece

    async def put(self, key: str, data: bytes) -> None:
        self._check()
        fatal = self.fate.before()
        await super().put(key, data)
        self.fate.after(fatal)

    def _check(self) -> None:
        if self.fate.away:
            raise StoreUnavailable(self.url, "told so")


def tools(bus: Bus, folder: Path, config: Config = CONFIG, fate: Fate | None = None) -> Tools:
    objects = MortalObjects(f"file://{folder}")
    objects.fate = fate or Fate()
    kept_s = config.limits.files_kept_s
    store = Store(bus, Files(bus, objects, kept_s), kept_s)
    return Tools(bus, config, store, Batches(bus, kept_s), Submitter(bus, config), Canceller(bus, config))


def files(bus: Bus, folder: Path) -> Files:
    return Files(bus, Objects(f"file://{folder}"), CONFIG.limits.files_kept_s)


def line(number: int, text: str = "", **other: Any) -> bytes:
    body = {"model": tasks.MODEL, "messages": [{"role": "user", "content": text or f"text {number}"}]}
    return msgspec.json.encode({"custom_id": f"item-{number}", "method": "POST", "url": CHAT, "body": body} | other)


async def uploaded(bus: Bus, folder: Path, lines: Sequence[bytes]) -> str:
    data, kept = b"\n".join(lines), files(bus, folder)
    key = f"uploads/{new_nonce()}"
    await kept.objects.put(key, data)
    made = await kept.create("acme", "in.jsonl", "batch", part=key, size=len(data))
    return made.id


async def made(
    bus: Bus,
    folder: Path,
    lines: Sequence[bytes],
    *,
    window_s: int = 3600,
    tenant: str = "acme",
    key: str = "",
    webhook: str = "",
) -> Batch:
    """`key`: the Idempotency-Key."""
    asked = Asked(
        tenant=tenant,
        key="",
        endpoint=CHAT,
        input_file_id=await uploaded(bus, folder, lines),
        window=f"{window_s}s",
        window_s=window_s,
        webhook=webhook,
    )
    return await Batches(bus, CONFIG.limits.files_kept_s).make(asked, key=key)


async def held(bus: Bus, batch_id: str) -> Fence:
    """A lease, whoever has held it."""
    nonce = new_nonce()
    if await bus.commands.call("HEXISTS", keys.batch(batch_id, "state"), "owner"):
        await bus.commands.call("HSET", keys.batch(batch_id, "state"), "lease_until_ms", 0)
    word, _, epoch = (await lease(bus, batch_id, nonce, 60_000)).partition(" ")
    assert word == "held"
    return Fence(int(epoch), nonce)


class Engine:
    """Runs whatever waits, and carries the replies out."""

    def __init__(self, bus: Bus, config: Config = CONFIG) -> None:
        self._bus = bus
        self._outbox = Outbox(bus, tasks.SHARD, Quotas(bus, config))
        self._owner: Owner | None = None
        self.ran: list[str] = []
        """Tasks, as they were begun."""
        self.holds = False
        """Nothing is begun."""

    async def serve(self) -> None:
        if not self.holds:
            await self._run()
        entries = [Entry(id, fields) for id, fields in await tasks.entries(self._bus, tasks.SHARD.outbox)]
        for id in await self._outbox.on_entries(entries):
            await self._bus.commands.call("XDEL", tasks.SHARD.outbox, id)

    async def _run(self) -> None:
        self._owner = self._owner or await tasks.worker(self._bus, slots=100)
        await beat(self._bus, self._owner, tasks.room(100), b"{}", [])
        if arrivals := await tasks.arrivals(self._bus):
            await admit(self._bus, tasks.SHARD, tasks.LIMITS, arrivals)
        await dispatch(self._bus, tasks.SHARD, CONFIG)
        hands = await tasks.hands(self._bus, self._owner)
        for hand, verdict in zip(hands, await start(self._bus, self._owner, hands) if hands else [], strict=True):
            if not isinstance(verdict, Running):
                continue
            self.ran.append(hand.id)
            assert await tasks.finish_one(self._bus, self._owner, self.ending(hand, verdict.body)) == "ok"

    def ending(self, hand: Hand, body: bytes) -> Ending:
        ending = tasks.ending(hand, 1, 0)
        if FAILS.encode() not in body:
            usage = b'{"prompt_tokens":3,"completion_tokens":2}'
            return replace(ending, result=b'{"said":%b,"usage":%b}' % (body, usage))
        error = ErrorBody(message="no", type="invalid_request_error", code="told_to")
        event = Finished(attempt=1, last=0, state=State.FAILED, status=400, error=error)
        failed = {"state": State.FAILED, "status": 400, "finished": encode(event)}
        return replace(ending, **failed, result=encode({"error": error}))


async def fed(bus: Bus, kit: Tools, batch_id: str, fate: Fate | None = None, engine: Engine | None = None) -> Engine:
    """Feed the batch until it has ended, or the feeder has died."""
    engine = engine or Engine(bus)
    feeder = Feeder(kit, batch_id, await held(bus, batch_id), lambda: CONFIG.limits.batch_window)
    running = asyncio.create_task(feeder.run())
    if fate is not None:
        fate.victim = running

    async def over() -> bool:
        await engine.serve()
        await balanced(bus, batch_id)
        return running.done()

    try:
        await wait_until(over, f"{batch_id} has ended", timeout_s=60)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return engine


BALANCE = """
local state = redis.call('HMGET', KEYS[1], 'status', 'total', 'fed', 'completed', 'failed', 'cancelled', 'expired')
state[8], state[9] = redis.call('HLEN', KEYS[2]), redis.call('BITCOUNT', KEYS[3])
return state
"""


async def balanced(bus: Bus, batch_id: str) -> None:
    """What holds at all times: what was fed is open or has ended, once."""
    names = [keys.batch(batch_id, what) for what in ("state", "open", "ended")]
    status, *counts = await bus.commands.call("EVAL", BALANCE, 3, *names)
    total, done, *ends, still_open, bits = (int(count or 0) for count in counts)
    assert sum(ends) + still_open == done <= total, (status, counts)
    assert bits == sum(ends) or status in (b"completed", b"failed", b"cancelled", b"expired"), (status, counts)


async def read_lines(bus: Bus, folder: Path, batch_id: str, kind: str) -> list[dict[str, Any]]:
    """Of the output or errors."""
    data = b""
    try:
        async for piece in files(bus, folder).read(file_id_of(batch_id, kind)):
            data += piece
    except FileNotFound:
        return []
    assert not data or data.endswith(b"\n")
    return [msgspec.json.decode(text) for text in data.splitlines()]


async def nothing_left(bus: Bus, folder: Path, batch: Batch) -> None:
    """But its record, its files and what they are made of."""
    left = {key.decode() for key in await bus.commands.call("KEYS", f"*{batch.id}*")}
    assert left <= {keys.batch(batch.id, "state"), keys.reply(f"batch.{batch.id}")}
    assert await bus.commands.call("EXISTS", keys.reply(f"batch.{batch.id}")) == 0 or not await tasks.entries(
        bus, keys.reply(f"batch.{batch.id}")
    )
    named: set[str] = set()
    for kind in ("output", "errors"):
        parts = await bus.commands.call("ZRANGE", keys.file_parts(file_id_of(batch.id, kind)), 0, -1)
        named |= {part.decode() for part in parts}
    stored = {key async for key in files(bus, folder).objects.list(f"batches/{batch.id}/")}
    assert stored == named


def codes(lines: Sequence[dict[str, Any]]) -> dict[str | None, str]:
    """What the errors file says, by custom_id."""
    return {
        line["custom_id"]: line["error"]["code"] if line["error"] else line["response"]["body"]["error"]["code"]
        for line in lines
    }
