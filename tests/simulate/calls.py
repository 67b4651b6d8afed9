"""The scripts of a shard, called as the services call them, at the time of the simulation."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import msgspec

from services.inference.scripts import Ending, Hand, Owner, Release, Running, Slots, beat, finish, release, start
from services.scheduler.scripts import Arrival, Dispatched, Due, Reaped, admit, dispatch, due, reap
from shared.bus.client import Bus
from shared.bus.script import MAX_ITEMS
from shared.bus.streams import ensure_group
from shared.config import Config
from shared.errors import CommandRefused
from shared.keys import SCHEDULER, WORKERS, ShardKeys
from shared.lifecycle import State
from shared.messages import Finished, Task, encode
from shared.submit import SubmitItem, submit
from tests.simulate.agenda import Agenda
from tests.simulate.clock import BEGAN_MS, KEY
from tests.simulate.recording import Told

ROUTE = "/v1/chat/completions"
VERDICTS = ("new", "full", "tenant_full", "batch_full", "late")
_LITERAL = str.maketrans({"{": "\\{", "}": "\\}"})
RESULT = b'{"simulated":true}'

P = ParamSpec("P")
Answer = TypeVar("Answer")


class Calls:
    """Must be the only one to use `bus`, opened within `simulated_time`."""

    def __init__(self, bus: Bus, shard: ShardKeys, config: Config, agenda: Agenda) -> None:
        bus.bulk = bus.commands  # one connection: the time is set before the script that reads it
        self._bus, self.shard, self._config, self._agenda = bus, shard, config, agenda
        self._told_ms = -1
        self.counts: dict[str, int] = {}

    async def begin(self) -> None:
        """Raises: BusError."""
        await ensure_group(self._bus, self.shard.arrivals, SCHEDULER)
        await announce_tenants(self._bus, self.shard, self._config)

    # -- the door

    async def submit(self, tasks: Sequence[Told]) -> list[tuple[str, float | None]]:
        """Of each, why it was refused (empty: it was not), and for what is refused as too late the wait that was predicted (s)."""
        said: list[tuple[str, float | None]] = []
        for first in range(0, len(tasks), MAX_ITEMS):
            page = tasks[first : first + MAX_ITEMS]
            verdicts = await self._at(
                "submit", submit, self._bus, self.shard, self._config, [self._item(t) for t in page]
            )
            for verdict in verdicts:
                word, _, wait_ms = verdict.partition(" ")
                assert word in VERDICTS, f"submit answers {verdict!r}"
                said.append(("" if word == "new" else word, seconds(int(wait_ms or -1))))
        return said

    def _item(self, told: Told) -> SubmitItem:
        row, policy = told.row, self._config.policy
        tenant, waiting_s = policy.tenant(row.tenant), policy.lanes[row.lane].waiting_s or self._config.limits.waiting_s
        return SubmitItem(
            id=told.id,
            lane=row.lane,
            tenant=row.tenant,
            session="",
            reply_to="",
            attached="",
            expires_in_ms=int(row.expires_in_s * 1000) or waiting_s * 1000,
            hurried="1" if row.expires_in_s else "",
            starts_in_ms=0,
            tokens_in=row.tokens_in,
            tokens_out=row.max_tokens,
            queued_limit=tenant.queued,
            batch_limit=tenant.batch_tokens,
            metered="",
            owes="",
            tells="",
            cache="",
            prefix=row.prefix,
            spec=encode(Task(route=ROUTE, model="simulated", tenant=row.tenant, lane=row.lane)),
            body=b"{}",
            pending=b"",
        )

    async def states(self, ids: Sequence[str]) -> list[State]:
        return [State(state.decode()) for (state,) in await self._fields(ids, "state")]

    async def left(self) -> list[str]:
        """Keys that must be gone when every task has ended. Those of tasks that have ended stay for a while, and those of
        workers that live."""
        shard, call = self.shard, self._bus.commands.call
        found = sorted(key.decode() for key in await call("KEYS", f"{shard.base.translate(_LITERAL)}*"))
        stays = ("task:", "log:", "bus:", "tenant:", "workers", "tenants", "fair", "means", "prefix:", "group:", "dead")
        kept = tuple(shard.base + name for name in stays)
        streams = (shard.arrivals, shard.work(""))
        left = []
        for key in found:
            if key.startswith(streams):
                if count := await call("XLEN", key):
                    left.append(f"{key} ({count})")
            elif not key.startswith(kept):
                left.append(key)
        return left

    async def _fields(self, ids: Sequence[str], *names: str) -> list[list[bytes]]:
        sent = [self._bus.commands.send("HMGET", self.shard.task(id), *names) for id in ids]
        return [await answer for answer in sent]

    # -- the scheduler

    async def arrivals(self, replica: str, count: int) -> list[Arrival]:
        entries = await self._new(self.shard.arrivals, SCHEDULER, replica, count)
        return [Arrival(fields.get(b"t", b"").decode(), entry) for entry, fields in entries]

    async def admit(self, arrivals: Sequence[Arrival]) -> list[str]:
        return await self._at("admit", admit, self._bus, self.shard, self._config.limits, arrivals)

    async def dispatch(self) -> Dispatched:
        return await self._at("dispatch", dispatch, self._bus, self.shard, self._config)

    async def reap(self) -> Reaped:
        return await self._at("reap", reap, self._bus, self.shard, self._config.limits)

    async def due(self) -> Due:
        return await self._at("due", due, self._bus, self.shard, self._config.limits, waiters=False)

    # -- a worker

    async def beat(self, owner: Owner, slots: Slots, holding: Sequence[tuple[str, int]]) -> dict[str, str]:
        return await self._at("beat", beat, self._bus, owner, slots, b"{}", holding)

    async def hands(self, owner: Owner) -> tuple[list[Hand], dict[str, str]]:
        """What the worker is to start, and what it is to stop and why. Its stream is gone when it was given up; it comes back
        with its next beat."""
        stream, hands, stops = self.shard.work(owner.worker), [], {}
        try:
            entries = await self._new(stream, WORKERS, owner.worker, 1000)
        except CommandRefused as error:
            if not str(error).startswith("NOGROUP"):
                raise
            return [], {}
        for entry, fields in entries:
            if stop := fields.get(b"stop"):
                stops[fields[b"t"].decode()] = stop.decode()
                self._bus.commands.post("XACK", stream, WORKERS, entry)
                self._bus.commands.post("XDEL", stream, entry)
            else:
                hands.append(Hand(fields[b"t"].decode(), int(fields[b"e"]), entry))
        return hands, stops

    async def start(self, owner: Owner, hands: Sequence[Hand]) -> list[Running | str]:
        return await self._paged("start", start, owner, hands)

    async def finish(self, owner: Owner, made: Sequence[tuple[Hand, int, int]]) -> list[str]:
        """Of each its hand, the attempt, and its tokens of prompt and answer."""
        endings = []
        for hand, attempt, tokens in made:
            said = Finished(attempt=attempt, last=0, state=State.COMPLETED, status=200, result=msgspec.Raw(RESULT))
            endings.append(
                Ending(
                    **_tail(hand, tokens),
                    state=State.COMPLETED,
                    status=200,
                    result=RESULT,
                    finished=encode(said),
                )
            )
        return await self._paged("finish", finish, owner, endings)

    async def release(self, owner: Owner, parted: Sequence[tuple[Hand, int, str]]) -> list[str]:
        """Of each its hand, its tokens so far, and why."""
        items = [Release(**_tail(hand, tokens), charge="none", why=why, share=0) for hand, tokens, why in parted]
        return await self._paged("release", release, owner, items)

    # -- alike for all

    async def _new(self, stream: str, group: str, consumer: str, count: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        call = self._bus.commands.call
        reply = await call("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", stream, ">")
        entries = reply[0][1] if reply else []
        return [(entry, dict(zip(fields[::2], fields[1::2], strict=True))) for entry, fields in entries]

    async def _paged(
        self, name: str, twin: Callable[..., Awaitable[Any]], owner: Owner, items: Sequence[Any]
    ) -> list[Any]:
        verdicts: list[Any] = []
        for first in range(0, len(items), MAX_ITEMS):
            verdicts += await self._at(name, twin, self._bus, owner, items[first : first + MAX_ITEMS])
        return verdicts

    async def _at(self, name: str, twin: Callable[P, Awaitable[Answer]], /, *args: P.args, **named: P.kwargs) -> Answer:
        """Call a script at the time of the simulation."""
        if self._agenda.now_ms != self._told_ms:
            self._told_ms = self._agenda.now_ms
            self._bus.commands.post("SET", KEY, BEGAN_MS + self._told_ms)
        self.counts[name] = self.counts.get(name, 0) + 1
        return await twin(*args, **named)


async def announce_tenants(bus: Bus, shard: ShardKeys, config: Config) -> None:
    """As the scheduler does when it starts."""
    for name, tenant in config.policy.tenants.items():
        await bus.commands.call("HSET", shard.tenants, name, f"{tenant.weight:g} {tenant.running}")


def _tail(hand: Hand, tokens: int) -> dict[str, Any]:
    """Without chunks: nobody reads the answers of a simulation."""
    return {
        "id": hand.id,
        "epoch": hand.epoch,
        "entry": hand.entry,
        "first": 1,
        "last": 0,
        "chunks": b"",
        "journal": b"",
        "tokens": tokens,
    }


def seconds(eta_ms: int) -> float | None:
    return eta_ms / 1000 if eta_ms >= 0 else None
