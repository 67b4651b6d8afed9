"""One shard, read from Redis and told by the model, in one form: a dictionary in which a difference has a name."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence

import msgspec

from services.inference.scripts import Slots
from shared.bus.client import Bus
from shared.bus.connection import Reply
from shared.keys import ShardKeys
from shared.lifecycle import Lane
from shared.messages import Chunks, Event, Finished, Pending, Reset, Resumed, Started, decode_event
from tests.model.lifecycle import Said, Shard, Task
from tests.model.scheduler import Clocks

View = dict[str, object]
INDEXES = ("leases", "expiry", "attached", "later")
WORDS = ("state", "owner", "worker", "stop")
NUMBERS = ("epoch", "attempts", "crashes", "failures", "last")
FAR_MS = 10**15
"""Beyond any test's end."""


Items = list[tuple[bytes, dict[bytes, bytes]]]
"""Entries of a stream."""


class Observed:
    """What Redis holds of the tasks and workers that a test has made."""

    def __init__(self, bus: Bus, shard: ShardKeys) -> None:
        self._send, self._shard = bus.commands.send, shard
        self._putting_off: list[asyncio.Future[Reply]] = []
        self._since_ms = 0
        """Redis' time before the last step: what the step was to put off lies behind it, what a test made due before."""
        self.view: View = {}
        self.arrivals: list[bytes] = []
        """Entry ids of `in`."""
        self.work: dict[str, list[bytes]] = {}
        """Entry ids of each worker's stream."""
        self.place: dict[str, int] = {}
        """Where each task is to wait, Unix ms: when it came, or when it may start."""
        self.clocks = Clocks({}, {}, {})
        self._places: dict[str, float] = {}
        """Of the tasks in backlogs."""
        self._rested: dict[Lane, dict[str, float]] = {}

    async def read(self, ids: Iterable[str], workers: Iterable[str], tenants: Iterable[str]) -> None:
        """All of it leaves as one write, so that a step costs two."""
        self.view, self.work, self._places, self.clocks = {}, {}, {}, Clocks({}, {}, {})
        put_off, self._putting_off = self._putting_off, []
        time, live = self._send("TIME"), asyncio.ensure_future(self._entries(self._shard.bus(0)))
        await asyncio.gather(
            *(self._read_task(id, live) for id in ids),
            *(self._read_work(name) for name in workers),
            *(self._read_index(name) for name in INDEXES),
            *(self._read_backlog(lane, tenant) for lane in Lane for tenant in tenants),
            *(
                self._read_lane(lane, *keys)
                for lane, *keys in zip(Lane, self._shard.turns, self._shard.rested, strict=True)
            ),
            *(self._read_running(tenant) for tenant in tenants),
            *(self._read_counts(name) for name in ("waiting", "held")),
            self._read_streams(),
            self._read_workers(),
            *put_off,
        )
        seconds, micros = await time
        self._since_ms = int(seconds) * 1000 + int(micros) // 1000

    async def _read_task(self, id: str, live: Awaitable[Items]) -> None:
        key, log_key = self._shard.task(id), self._shard.log(id)
        flat, log, ttl, log_ttl, said_live = await asyncio.gather(
            self._send("HGETALL", key),
            self._entries(log_key),
            self._send("PTTL", key),
            self._send("PTTL", log_key),
            live,
        )
        fields = {name.decode(): value.decode() for name, value in _pairs(flat).items()}
        if "tombstone" in fields:
            assert ttl > 0, f"the note of {id} never expires"
            self.view[f"task {id}"] = "tombstone"
        if "lane" not in fields:
            return
        self.place[id] = int(fields.get("place", fields["created_at_ms"]))
        said = [(entry, decode_event(item[b"e"])) for entry, item in said_live if item[b"t"] == id.encode()]
        lasting = {entry for entry, event in said if not isinstance(event, Pending | Started)}
        assert lasting == {entry for entry, _ in log}, f"bus and log of {id} differ"
        self.view[f"task {id}"] = {
            **{name: int(fields.get(name, 0)) for name in NUMBERS},
            **{name: fields.get(name, "") for name in WORDS},
            "behind": int(fields.get("from", -1)),
            "history": [_attempt(line) for line in fields.get("history", "").splitlines()],
            "log": [_said(decode_event(item[b"e"])) for _, item in log],
            "live": [_said(event) for _, event in said],
            "expires": (ttl > 0, log_ttl > 0),
        }

    async def _read_work(self, worker: str) -> None:
        key = self._shard.work(worker)
        exists, items = await asyncio.gather(self._send("EXISTS", key), self._entries(key))
        if exists:
            self.work[worker] = [entry for entry, _ in items]
            self.view[f"work {worker}"] = [
                (
                    item[b"t"].decode(),
                    int(item.get(b"e", 0)),
                    *(item.get(name, b"").decode() for name in (b"stop", b"l")),
                )
                for _, item in items
            ]

    async def _read_index(self, name: str) -> None:
        key, since_ms = self._shard.base + name, self._since_ms
        scores = _pairs(await self._send("ZRANGE", key, 0, -1, "WITHSCORES"))
        self.view[name] = {id.decode(): float(score) <= since_ms for id, score in scores.items()}
        held = [word for id, score in scores.items() if float(score) > since_ms for word in (FAR_MS, id)]
        # So that nothing becomes due before a test says so.
        if held:
            self._putting_off.append(self._send("ZADD", key, "XX", *held))

    async def _read_backlog(self, lane: Lane, tenant: str) -> None:
        places = await self._scores(self._shard.backlog(lane, tenant))
        self._places |= places
        if places:
            self.view[f"backlog {lane} {tenant}"] = set(places)

    async def _read_lane(self, lane: Lane, turns: str, rested: str) -> None:
        clocks = self.clocks
        clocks.turns[lane], self._rested[lane], told = await asyncio.gather(
            self._scores(turns),
            self._scores(rested),
            self._send("HMGET", self._shard.fair, f"v:{lane}", f"t:{lane}"),
        )
        clocks.now[lane], clocks.tags[lane] = (float(value or 0) for value in told)
        self.view[f"turns {lane}"] = set(clocks.turns[lane])

    async def _read_running(self, tenant: str) -> None:
        members = await self._send("SMEMBERS", self._shard.running(tenant))
        if members:
            self.view[f"running {tenant}"] = {id.decode() for id in members}

    async def _read_counts(self, name: str) -> None:
        flat = _pairs(await self._send("HGETALL", self._shard.base + name))
        self.view[name] = {field.decode(): int(count) for field, count in flat.items()}

    async def _read_streams(self) -> None:
        shard = self._shard
        arrivals, outbox, dead = await asyncio.gather(
            *(self._entries(stream) for stream in (shard.arrivals, shard.outbox, shard.dead))
        )
        self.arrivals = [entry for entry, _ in arrivals]
        self.view["in"] = [item.get(b"t", b"").decode() for _, item in arrivals]
        self.view["outbox"] = Counter(item[b"t"].decode() for _, item in outbox)
        self.view["dead"] = Counter((item[b"t"].decode(), item[b"code"].decode()) for _, item in dead)

    async def _read_workers(self) -> None:
        said, suspects = await asyncio.gather(
            self._send("HGETALL", self._shard.workers), self._send("HGETALL", self._shard.suspects)
        )
        announced = {name.decode(): value.split() for name, value in _pairs(said).items()}
        self.view["workers"] = {
            name: (Slots(*map(int, slots)), beat == b"1") for name, (beat, *slots, _) in announced.items()
        }
        suspected = {name.decode(): value.split() for name, value in _pairs(suspects).items()}
        self.view["suspects"] = {name: (id.decode(), int(epoch)) for name, (id, epoch) in suspected.items()}

    async def _scores(self, key: str) -> dict[str, float]:
        flat = _pairs(await self._send("ZRANGE", key, 0, -1, "WITHSCORES"))
        return {member.decode(): float(score) for member, score in flat.items()}

    def faults(self) -> Iterator[str]:
        """What is wrong whatever the model says."""
        for id, place in self._places.items():
            if place != self.place[id]:
                yield f"{id} waits at {place}, its place is {self.place[id]}"
        for lane in Lane:
            turns, rested = self.clocks.turns[lane], self._rested[lane]
            if both := turns.keys() & rested.keys():
                yield f"{both} take turns and rest in {lane}"
            times = [*turns.values(), *rested.values(), self.clocks.now[lane], self.clocks.tags[lane]]
            if not all(map(math.isfinite, times)):
                yield f"the virtual times of {lane} are {times}"

    async def _entries(self, stream: str) -> Items:
        found: Reply = await self._send("XRANGE", stream, "-", "+")
        return [(entry, _pairs(flat)) for entry, flat in found]


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _attempt(line: str) -> Said:
    ended = msgspec.json.decode(line)
    assert ended["started_at_ms"] <= ended["ended_at_ms"]
    return ended["attempt"], ended["worker"], ended["why"], ended["last"]


def _said(event: Event) -> Said:
    match event:
        case Pending():
            return ("pending",)
        case Started():
            return "started", event.attempt
        case Reset():
            return "reset", event.attempt
        case Resumed():
            return "resumed", event.attempt, event.last
        case Chunks():
            return "chunks", event.attempt, event.first, event.last
        case Finished():
            return "finished", event.attempt, event.last, event.state


def told(shard: Shard) -> View:
    """The same of the model."""
    view: View = {f"task {id}": "tombstone" for id in shard.tombstones}
    view |= {f"task {task.id}": _told_task(task) for task in shard.tasks.values()}
    view |= {f"work {name}": [(e.task, e.epoch, e.stop, e.lane) for e in work] for name, work in shard.work.items()}
    view |= {f"backlog {lane} {tenant}": ids for (lane, tenant), ids in shard.backlogs.items() if ids}
    view |= {f"turns {lane}": tenants for lane, tenants in shard.turns.items()}
    view |= {f"running {tenant}": ids for tenant, ids in shard.running.items() if ids}
    view |= {"waiting": shard.waiting, "held": shard.held}
    view |= {"leases": shard.leases, "expiry": shard.expiry, "attached": shard.attached, "later": shard.later}
    view |= {"in": [entry.task for entry in shard.arrivals], "suspects": shard.suspects}
    view |= {"outbox": shard.outbox, "dead": shard.dead}
    return view | {"workers": {name: (worker.slots, worker.silent) for name, worker in shard.workers.items()}}


def _told_task(task: Task) -> View:
    return {
        **{name: getattr(task, name) for name in (*NUMBERS, *WORDS)},
        "behind": task.behind,
        "history": task.history,
        "log": task.log,
        "live": task.live,
        "expires": (task.state.terminal, task.state.terminal),
    }


def differences(expected: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    names = sorted(expected.keys() | found.keys())
    nothing = "nothing"
    return [
        f"{name}: the model says {expected.get(name, nothing)}, Redis says {found.get(name, nothing)}"
        for name in names
        if expected.get(name, nothing) != found.get(name, nothing)
    ]
