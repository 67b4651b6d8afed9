"""What the services do in several round trips, each as one process would do it, and how fresh ones bring it to its end."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from services.inference.engine_echo import EchoEngine
from services.inference.heartbeat import Heartbeat
from services.inference.scripts import Owner, retire
from services.inference.worker import Worker
from services.notifier.outbox import Outbox
from services.scheduler.intake import Intake
from services.scheduler.quota_sweep import QuotaSweep
from services.scheduler.scripts import Look, due, reap, repair
from shared.bus.client import Bus
from shared.bus.consume import Entry
from shared.bus.streams import ensure_group
from shared.cancel import Canceller, cancel
from shared.clock import now_ms
from shared.config import Config, Limits
from shared.keys import OUTBOX, SCHEDULER, WORKERS, quota
from shared.lifecycle import State
from shared.payer import ANONYMOUS
from shared.policy import Live, Policy, Tenant
from shared.quota import Quotas
from shared.request import from_json
from shared.submit import Submitter
from tests.model.recorder import Mishap, Recorder, live_through
from tests.support import tasks
from tests.support.tasks import MODEL, SHARD
from tests.support.waiting import wait_until

LIMITS = Limits(results_kept_s=600, log_kept_s=600, lease_s=600)
"""Leases end when a test says so."""
METERED = "lions"
"""The tenant whose tokens are counted, though never used up."""
POLICY = Policy(tenants={METERED: Tenant(tokens_per_min=100_000)})
CONFIG = Config(pools=tasks.CONFIG.pools, limits=LIMITS, live=Live(POLICY))
KEY = "order-17"
"""The producer's own id of its task."""
TEXT = "one two three four five"


@dataclass
class Stage:
    url: str
    bus: Bus
    """Of everyone who does not suffer the mishap."""
    ids: list[str] = field(default_factory=list)
    owner: Owner | None = None
    entries: list[Entry] = field(default_factory=list)
    """What the process under test has read."""

    # -- clients

    async def submit(self, bus: Bus, text: str = TEXT, **wishes: str | float) -> None:
        """`wishes`: further fields of the envelope."""
        body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": text}]}
        envelope = {"body": body, "route": "/v1/chat/completions", "task_id": KEY, "reply_to": "orders", **wishes}
        submitter = Submitter(bus, CONFIG)
        request = from_json(CONFIG, ANONYMOUS, msgspec.json.encode(envelope))
        self.ids = [(await submitter.submit(request, submitter.new_id(request))).id]

    async def ask_metered(self, bus: Bus) -> None:
        await self.submit(bus, tenant=METERED)

    async def cancel(self, bus: Bus) -> None:
        await Canceller(bus, CONFIG).cancel(self.ids[0])

    # -- schedulers

    async def read(self, stream: str, group: str, consumer: str = "c") -> list[Entry]:
        """What is new, and what a consumer that died has left unacknowledged."""
        call = self.bus.commands.call
        await ensure_group(self.bus, stream, group)
        _, left, *_ = await call("XAUTOCLAIM", stream, group, consumer, 0, "0-0")
        reply = await call("XREADGROUP", "GROUP", group, consumer, "STREAMS", stream, ">")
        pairs = [*left, *(reply[0][1] if reply else [])]
        return [Entry(id, dict(zip(fields[::2], fields[1::2], strict=True))) for id, fields in pairs if fields]

    async def schedule(self, bus: Bus) -> None:
        await Intake(bus, SHARD, CONFIG).on_arrivals(self.entries)

    # -- workers

    async def hand_out(self, name: str = "w1") -> None:
        """The tasks, in the hands of a new worker that has not started them."""
        self.owner = await tasks.worker(self.bus, name)
        self.entries = await self.read(SHARD.arrivals, SCHEDULER)
        await self.schedule(self.bus)
        self.entries = await self.read(SHARD.work(name), WORKERS)

    def worker(self, bus: Bus, *, slow: bool, faults: bool = True) -> tuple[Worker, EchoEngine]:
        assert self.owner is not None
        speed = 60 if slow else 0
        engine = EchoEngine(model=MODEL, tokens_per_s=speed, first_token_ms=0, max_model_len=99, slots=4, faults=faults)
        return Worker(bus, self.owner, engine, tasks.CONFIG), engine

    async def work(self, bus: Bus, *, slow: bool = True, faults: bool = True) -> None:
        worker, _ = self.worker(bus, slow=slow, faults=faults)
        await worker.on_work(self.entries)
        await wait_until(lambda: not worker.runs, "all runs have ended")

    async def beat(self, bus: Bus) -> None:
        assert self.owner is not None
        worker, engine = self.worker(bus, slow=True)
        await worker.on_work(self.entries)
        heartbeat = Heartbeat(bus, self.owner, engine, worker, model=MODEL)
        await heartbeat.beat()
        await wait_until(lambda: all(run.published for run in worker.runs.values()), "the first chunk is published")
        await heartbeat.beat()
        await wait_until(lambda: not worker.runs, "all runs have ended")

    async def leave(self, bus: Bus) -> None:
        """As app.leave."""
        assert self.owner is not None
        worker, engine = self.worker(bus, slow=True)
        await worker.on_work(self.entries)
        await retire(bus, self.owner, running=False)
        heartbeat = Heartbeat(bus, self.owner, engine, worker, model=MODEL)
        heartbeat.leaving = True
        await heartbeat.beat()
        await worker.drain(0)
        await retire(bus, self.owner, running=True)

    async def kept_slots(self) -> list[bytes]:
        """Entries that the worker has dealt with, and that still take a slot once their leases are over."""
        call = self.bus.commands.call
        if self.owner is None:
            return []
        for id in await call("ZRANGE", SHARD.leases, 0, -1):
            await call("ZADD", SHARD.leases, 1, id)
        await reap(self.bus, SHARD, LIMITS)
        left = {entry for entry, _ in await tasks.entries(self.bus, SHARD.work(self.owner.worker))}
        return [entry.id for entry in self.entries if entry.id in left]

    # -- time

    async def lapse(self) -> None:
        """Every worker has been silent for too long, every retry is due."""
        call = self.bus.commands.call
        for name in await call("HKEYS", SHARD.workers):
            await call("HSET", SHARD.workers, name, "1 4 4 4 {}")
        for key in (SHARD.leases, SHARD.later):
            for id in await call("ZRANGE", key, 0, -1):
                await call("ZADD", key, 1, id)

    async def tidy(self, bus: Bus) -> None:
        """As a pass of housekeeping, past its grace."""
        await reap(bus, SHARD, LIMITS)
        found = [id.decode() for id in await bus.commands.call("ZRANGE", SHARD.expiry, 0, -1)]
        first = await repair(bus, SHARD, LIMITS, [Look(id, "") for id in found])
        astray = [Look(id, verdict) for id, verdict in zip(found, first, strict=True) if verdict.isdigit()]
        await repair(bus, SHARD, LIMITS, astray)
        await due(bus, SHARD, LIMITS)
        await Intake(bus, SHARD, CONFIG).dispatch()

    async def reply(self, bus: Bus) -> None:
        """As the consumer of the outbox."""
        done = await Outbox(bus, SHARD, Quotas(bus, CONFIG)).on_entries(self.entries)
        if done:
            await asyncio.gather(
                bus.commands.send("XACK", SHARD.outbox, OUTBOX, *done), bus.commands.send("XDEL", SHARD.outbox, *done)
            )

    async def sweep(self, bus: Bus) -> None:
        """Of the quotas, past its grace."""
        for id in await bus.commands.call("ZRANGE", quota(METERED, "looks"), 0, -1):
            await bus.commands.call("ZADD", quota(METERED, "looks"), 1, id)
        await QuotaSweep(bus, CONFIG).look()

    async def reserved(self) -> list[str]:
        """Tasks whose tokens are not settled."""
        return [id.decode() for id in await self.bus.commands.call("HKEYS", quota(METERED, "reservations"))]

    # -- the end

    async def settle(self) -> None:
        """Whoever acted before is gone; a scheduler, a worker and a notifier that know nothing of it do what is left."""
        for number in range(10):
            await self.lapse()
            await self.tidy(self.bus)
            await self.hand_out(f"fresh-{number}")
            await self.work(self.bus, slow=False, faults=False)
            if not await self.bus.commands.call("ZCARD", SHARD.expiry):
                break
        self.entries = await self.read(SHARD.arrivals, SCHEDULER)
        await self.schedule(self.bus)
        self.entries = await self.read(SHARD.outbox, OUTBOX)
        await self.reply(self.bus)
        await self.sweep(self.bus)
        await self.lapse()
        await reap(self.bus, SHARD, LIMITS)
        await due(self.bus, SHARD, LIMITS)


Step = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True)
class Flow:
    prepare: Step
    act: Callable[[Stage, Bus], Awaitable[None]]
    by: str = "scheduler"
    """A `client` that gets no answer asks again; a `worker` that lives on must have its slots back."""
    ends: frozenset[State] = frozenset({State.COMPLETED})


async def nothing(stage: Stage) -> None: ...


async def arrived(stage: Stage) -> None:
    await stage.submit(stage.bus)
    stage.owner = await tasks.worker(stage.bus)
    stage.entries = await stage.read(SHARD.arrivals, SCHEDULER)


def handed(text: str) -> Step:
    async def prepare(stage: Stage) -> None:
        await stage.submit(stage.bus, text)
        await stage.hand_out()

    return prepare


async def started(stage: Stage) -> None:
    """A worker died behind start and its first chunk."""
    await handed(TEXT)(stage)
    assert not await live_through(stage.url, Recorder(Mishap.KILLED, 2), stage.work)


async def taken_back(stage: Stage) -> None:
    await started(stage)
    await stage.lapse()
    await stage.tidy(stage.bus)
    await stage.hand_out("w2")


async def lapsed(stage: Stage) -> None:
    await started(stage)
    await stage.lapse()


async def put_off(stage: Stage) -> None:
    """A retry whose time has come."""
    await handed(f"!busy {TEXT}")(stage)
    await stage.work(stage.bus)
    await stage.lapse()


async def overdue(stage: Stage) -> None:
    """Waiting, past its deadline."""
    await arrived(stage)
    await stage.schedule(stage.bus)
    await stage.bus.commands.call("ZADD", SHARD.expiry, 1, stage.ids[0])


async def to_wait(stage: Stage) -> None:
    """Arrived, of a tenant whose tokens are to be reserved before it may run."""
    await stage.submit(stage.bus, tenant=METERED, on_limit="wait")
    stage.entries = await stage.read(SHARD.arrivals, SCHEDULER)


async def not_yet(stage: Stage) -> None:
    """A task that might not start before a time, which has come."""
    await stage.submit(stage.bus, not_before=now_ms() / 1000 + 60)
    await stage.lapse()


async def metered(stage: Stage) -> None:
    """Ended; its tokens are to be settled."""
    await stage.ask_metered(stage.bus)
    await stage.hand_out()
    await stage.work(stage.bus, slow=False)
    stage.entries = await stage.read(SHARD.outbox, OUTBOX)


async def reserved(stage: Stage) -> None:
    """Ended; nobody has settled its tokens."""
    await metered(stage)
    stage.entries = []


async def ended(stage: Stage) -> None:
    await handed(TEXT)(stage)
    await stage.work(stage.bus, slow=False)
    stage.entries = await stage.read(SHARD.outbox, OUTBOX)


async def submit(stage: Stage, bus: Bus) -> None:
    await stage.submit(bus)


async def cancel_before_it_comes(stage: Stage, bus: Bus) -> None:
    await Canceller(bus, CONFIG).cancel_key("default", KEY)
    await stage.submit(bus)


CANCELLED = frozenset({State.CANCELLED})
FLOWS = {
    "reserve and submit": Flow(nothing, submit, by="client"),
    "reserve, take and submit": Flow(nothing, Stage.ask_metered, by="client"),
    "cancel a waiting task": Flow(arrived, Stage.cancel, by="client", ends=CANCELLED),
    "cancel a running task": Flow(started, Stage.cancel, by="client", ends=CANCELLED),
    "cancel a task to come": Flow(nothing, cancel_before_it_comes, by="client", ends=CANCELLED),
    "admit and dispatch": Flow(arrived, Stage.schedule),
    "admit, take, admit and dispatch": Flow(to_wait, Stage.schedule),
    "bring in a task whose time has come": Flow(not_yet, Stage.tidy),
    "start, emit and finish": Flow(handed(TEXT), Stage.work, by="worker"),
    "start, rebase, emit and finish": Flow(taken_back, Stage.work, by="worker"),
    "release, engine dead": Flow(handed(f"!dead {TEXT}"), Stage.work, by="worker"),
    "release, engine busy": Flow(handed(f"!busy {TEXT}"), Stage.work, by="worker"),
    "release, engine failed": Flow(handed(f"!error {TEXT}"), Stage.work, by="worker"),
    "beat": Flow(handed(TEXT), Stage.beat, by="worker"),
    "retire and drain": Flow(handed(TEXT), Stage.leave, by="worker"),
    "reap a dead worker": Flow(lapsed, Stage.tidy),
    "put back a retry that is due": Flow(put_off, Stage.tidy),
    "expire a waiting task": Flow(overdue, Stage.tidy, ends=frozenset({State.EXPIRED})),
    "reply": Flow(ended, Stage.reply),
    "reply and settle": Flow(metered, Stage.reply),
    "settle what was forgotten": Flow(reserved, Stage.sweep),
}


# -- rivals, who come before a command that is late


async def reaper(stage: Stage) -> None:
    await stage.lapse()
    await reap(stage.bus, SHARD, LIMITS)


async def canceller(stage: Stage) -> None:
    for id in stage.ids:
        await cancel(stage.bus, SHARD, LIMITS, [id])


async def deadline(stage: Stage) -> None:
    for id in stage.ids:
        if await stage.bus.commands.call("ZADD", SHARD.expiry, "XX", "CH", 1, id):
            await stage.bus.commands.call("HSET", SHARD.task(id), "deadline_ms", 1)
    await due(stage.bus, SHARD, LIMITS)


RIVALS: dict[str, tuple[Step, frozenset[State]]] = {
    "reap": (reaper, frozenset()),
    "cancel": (canceller, CANCELLED),
    "deadline": (deadline, frozenset({State.EXPIRED})),
}
