"""What is broken, and when: a schedule drawn from a seed, and the hands that carry it out."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

from msgspec import Struct
from redis.exceptions import RedisError

from shared.keys import FRONT, OUTBOX, REQUESTS, SCHEDULER, WORKERS
from tests.chaos.cluster import Cluster, Member
from tests.chaos.history import History
from tests.chaos.link import Link
from tests.support.waiting import wait_until

REDIS_BACK_S = 60.0
ANY = ("ingress", "scheduler", "inference", "notifier")

WEIGHTS = {
    "kill": 12,  # SIGKILL
    "terminate": 5,  # SIGTERM
    "zombie": 3,  # SIGSTOP of a worker beyond its lease, then SIGCONT
    "freeze": 4,  # SIGSTOP of any process for a while, then SIGCONT
    "rolling restart": 2,  # SIGTERM of every process of a service, one after the other
    "kill service": 1,  # SIGKILL of every process of a service at once
    "redis restart": 1,  # SIGTERM
    "redis kill": 1,  # SIGKILL, with its append-only file written
    "redis freeze": 2,  # SIGSTOP, then SIGCONT
    "cut": 6,  # all connections of one process, with a reset
    "cut all": 1,
    "tear": 4,  # the connection breaks in the middle of a reply
    "stall": 3,  # nothing passes for a while, connections stay
    "half open": 3,  # Redis has forgotten the connections, the process does not know
    "slow": 2,  # every piece of every process is late
    "flush scripts": 2,
    "kill clients": 2,  # CLIENT KILL TYPE normal
    "destroy group": 3,  # of any stream that has one
}
ENGINE_WEIGHTS = {"kill engine": 6, "freeze engine": 2}
"""With vLLM: its EngineCore, a process below the worker."""


class Fault(Struct, frozen=True):
    at_s: float
    kind: str
    service: str
    number: int
    """Which of the service's processes, modulo their count; of groups likewise."""
    share: float
    """0 to 1: where between its shortest and its longest the fault lasts."""


def schedule(seed: int, duration_s: float, every_s: float, kinds: Mapping[str, int]) -> Iterator[Fault]:
    """The same seed gives the same faults. Now and then a calm, so that recovery is seen, too."""
    dice = random.Random(f"faults {seed}")
    at_s = 1.0
    while (at_s := at_s + dice.expovariate(1 / every_s)) < duration_s:
        if dice.random() < 0.02:
            at_s += 3 * every_s
        kind = dice.choices(list(kinds), list(kinds.values()))[0]
        yield Fault(round(at_s, 2), kind, dice.choice(ANY), dice.randrange(1000), dice.random())


class Injector:
    """Carries faults out. Those that last run beside one another, but only one at a time concerns Redis itself."""

    def __init__(self, cluster: Cluster, own: Link, history: History, on_fault: Callable[[Fault, str], None]) -> None:
        self._cluster, self._own, self._history, self._on_fault = cluster, own, history, on_fault
        self._redis_lock = asyncio.Lock()
        self._lease_s: float = cluster.config.limits.lease_s
        self.injected: dict[str, int] = {}
        self.skipped = 0
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self, faults: Iterator[Fault], began_s: float) -> None:
        for fault in faults:
            await asyncio.sleep(max(0.0, began_s + fault.at_s - self._history.now_s()))
            task = asyncio.create_task(self._inject(fault), name=fault.kind)
            self._under_way.add(task)
            task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._history.note(task.get_name(), "stuck", error=repr(error))

    async def finish(self) -> None:
        """Until the last fault is over, and everything flows again."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        for link in self._links():
            link.delay_s = 0.0
            link.flow()

    async def _inject(self, fault: Fault) -> None:
        if fault.kind.startswith("redis") or fault.kind in ("flush scripts", "kill clients", "destroy group"):
            async with self._redis_lock:
                await self._on_redis(fault)
        elif fault.kind in ("slow", "cut all"):
            self._note(fault, "all")
            await self._on_links(fault)
        elif fault.kind in ("rolling restart", "kill service"):
            await self._on_service(fault)
        else:
            member = self._member(fault)
            if member is None:
                self.skipped += 1
            else:
                await self._on_member(fault, member)

    def _member(self, fault: Fault) -> Member | None:
        """A process that is up; the one after it if not."""
        service = "inference" if fault.kind in ("zombie", "kill engine", "freeze engine") else fault.service
        members = self._cluster.of(service)
        turn = fault.number % len(members)
        return next((m for m in members[turn:] + members[:turn] if m.ready.is_set()), None)

    def _note(self, fault: Fault, target: str, **more: object) -> None:
        self.injected[fault.kind] = self.injected.get(fault.kind, 0) + 1
        self._history.note(target, "fault", kind=fault.kind, **more)
        self._on_fault(fault, target)

    # -- hands

    async def _on_member(self, fault: Fault, member: Member) -> None:
        assert member.link is not None
        self._note(fault, member.program.name, worker=member.link.worker)
        match fault.kind:
            case "kill":
                member.send(signal.SIGKILL)
            case "terminate":
                member.send(signal.SIGTERM)
            case "zombie":
                await self._pause(member, self._lease_s + 2 + 2 * fault.share)
            case "freeze":
                await self._pause(member, 0.2 + 8 * fault.share**2)
            case "cut":
                member.link.cut()
            case "tear":
                member.link.tear()
            case "half open":
                member.link.half_open()
            case "stall":
                member.link.stall()
                await asyncio.sleep(0.2 + (self._lease_s + 2) * fault.share**2)
                member.link.flow()
            case "kill engine" | "freeze engine":
                await self._on_engine(fault, member)

    async def _pause(self, member: Member, seconds: float) -> None:
        member.send(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        member.send(signal.SIGCONT)

    async def _on_engine(self, fault: Fault, member: Member) -> None:
        for pid in member.below("EngineCore"):
            with contextlib.suppress(ProcessLookupError):
                if fault.kind == "kill engine":
                    os.kill(pid, signal.SIGKILL)
                else:
                    os.kill(pid, signal.SIGSTOP)
                    await asyncio.sleep(self._lease_s + 2 * fault.share)
                    os.kill(pid, signal.SIGCONT)

    async def _on_service(self, fault: Fault) -> None:
        self._note(fault, fault.service)
        for member in self._cluster.of(fault.service):
            if fault.kind == "kill service":
                member.send(signal.SIGKILL)
                continue
            await self._cluster.wait_ready([member])
            member.send(signal.SIGTERM)
            await self._cluster.wait_ready([member])

    async def _on_links(self, fault: Fault) -> None:
        if fault.kind == "cut all":
            for link in self._links():
                link.cut()
            return
        for link in self._links():
            link.delay_s = 0.02 + 0.2 * fault.share
        await asyncio.sleep(3 + 5 * fault.share)
        for link in self._links():
            link.delay_s = 0.0

    def _links(self) -> list[Link]:
        return [self._own, *(member.link for member in self._cluster.all if member.link is not None)]

    async def _on_redis(self, fault: Fault) -> None:
        server, redis = self._cluster.server, self._cluster.redis
        if not server.ready.is_set():
            self.skipped += 1
            return
        match fault.kind:
            case "redis restart":
                await self._restart(fault, signal.SIGTERM)
            case "redis kill":
                # With `everysec` a write may wait in memory while a sync is under way, and is lost with the process. How
                # much that is, is measured elsewhere; here all that was acknowledged has to be in the file.
                await redis.config_set("appendfsync", "always")
                await self._restart(fault, signal.SIGKILL)
            case "redis freeze":
                self._note(fault, "redis")
                await self._pause(server, 0.2 + 6 * fault.share**2)
            case "flush scripts":
                self._note(fault, "redis")
                await redis.script_flush()
            case "kill clients":
                self._note(fault, "redis")
                await redis.client_kill_filter(_type="normal", skipme=True)
            case "destroy group":
                await self._destroy_group(fault)

    async def _restart(self, fault: Fault, number: signal.Signals) -> None:
        server = self._cluster.server
        self._note(fault, "redis")
        server.send(number)
        await wait_until(server.ready.is_set, "Redis serves again", REDIS_BACK_S)

    async def _destroy_group(self, fault: Fault) -> None:
        groups = [group async for group in self._groups()]
        stream, group = groups[fault.number % len(groups)]
        self._note(fault, f"{group} of {stream}")
        with contextlib.suppress(RedisError):
            await self._cluster.redis.xgroup_destroy(stream, group)

    async def _groups(self) -> AsyncIterator[tuple[str, str]]:
        redis = self._cluster.redis
        yield REQUESTS, FRONT
        for shard in self._cluster.shards():
            yield shard.arrivals, SCHEDULER
            yield shard.outbox, OUTBOX
            for worker in await redis.hkeys(shard.workers):
                yield shard.work(worker), WORKERS
            for partition in range(self._cluster.config.pools[shard.pool].partitions):
                with contextlib.suppress(RedisError):
                    for group in await redis.xinfo_groups(shard.bus(partition)):
                        yield shard.bus(partition), group["name"]
