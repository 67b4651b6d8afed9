"""Whatever happens to Redis: when it is over, reading, tailing and writing go on by themselves, and no loop has ended."""

import asyncio
import contextlib
import itertools
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from shared.bus import consume
from shared.bus import tail as tail_module
from shared.bus.client import Bus
from shared.bus.connection import Connection
from shared.bus.consume import Consumer, Entry
from shared.bus.streams import append
from shared.bus.tail import Tail
from shared.keys import reader_group
from shared.messages import Event
from shared.probes import passing
from tests.support import tasks
from tests.support.redis import VERSIONS, Proxy, servers
from tests.support.server import Server, replica_of, server
from tests.support.tasks import SHARD
from tests.support.waiting import wait_blocking, wait_until

STREAM, GROUP, BUS = SHARD.outbox, "outbox", SHARD.bus(0)
SHORT_S = 0.5
"""How long a connection may be silent here."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(consume, "RECLAIM_AFTER_MS", 50)
    monkeypatch.setattr(consume, "BLOCK_MS", 200)
    monkeypatch.setattr(tail_module, "BLOCK_MS", 200)
    caplog.set_level(logging.CRITICAL)


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    if request.param not in servers():
        pytest.skip(f"no redis-server {request.param} here")
    return str(request.param)


@pytest.fixture
def redis(version: str, tmp_path: Path) -> Iterator[Server]:
    with server(servers()[version], tmp_path / "redis", "--appendonly", "yes") as running:
        yield running


class Rig:
    """A consumer, a tail and a writer in one process, as a notifier has them."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.consumer = Consumer(bus, stream=STREAM, group=GROUP, name="c1", handle=self.consume, count=10)
        self.tail = Tail(bus, pool="smol", shard=0, partitions=1, replica="r1")
        self.consumed: list[bytes] = []
        self.heard: list[str] = []
        self._tokens = itertools.count()
        for connection in self.connections():
            connection._timeout_s = SHORT_S

    def connections(self) -> list[Connection]:
        return [self.bus.commands, self.bus.bulk, self.consumer._read, self.tail._read]

    def on_event(self, entry: bytes, task_id: str, event: Event) -> None:
        self.heard.append(task_id)

    def on_gap(self) -> None:
        return

    async def consume(self, entries: list[Entry]) -> list[bytes]:
        self.consumed += [entry.fields.get(b"t", b"") for entry in entries]
        return [entry.id for entry in entries]

    async def works(self) -> None:
        """A new entry is written, consumed and acknowledged, a new event is heard, and every loop says that it is well."""
        token = str(next(self._tokens))
        self.tail.listen(self, task=token)
        await append(self.bus, STREAM, {"t": token})
        await append(self.bus, BUS, {"t": token, "s": "", "e": tasks.chunks_event(1, 1)})
        await wait_until(lambda: token.encode() in self.consumed, "a new entry is consumed")
        await wait_until(lambda: token in self.heard, "a new event is heard")
        await wait_until(self.is_ready, "no loop has a fault")
        await wait_until(self.is_drained, "everything is acknowledged")

    def is_ready(self) -> bool:
        return passing(self.consumer)() is None and passing(self.tail)() is None

    async def is_drained(self) -> bool:
        call = self.bus.commands.call
        length, (pending, *_) = await call("XLEN", STREAM), await call("XPENDING", STREAM, GROUP)
        return (length, pending) == (0, 0)


@pytest.fixture
async def rig(redis: Server, no_task_left: None) -> AsyncIterator[Rig]:
    async with rigged(redis.url) as made:
        yield made


@contextlib.asynccontextmanager
async def rigged(url: str) -> AsyncIterator[Rig]:
    """Working before, and no loop of it ended afterwards."""
    async with Bus(url, name="rig") as bus:
        made = Rig(bus)
        running = [asyncio.create_task(loop.run()) for loop in (made.consumer, made.tail)]
        await made.tail.joined.wait()
        await made.works()
        yield made
        assert not any(task.done() for task in running), "a loop has ended"
        while not all(task.done() for task in running):
            await asyncio.gather(made.consumer.stop(), made.tail.stop())
            await asyncio.wait(running, timeout=0.05)
        await asyncio.gather(*running)


async def restart(redis: Server, rig: Rig) -> None:
    redis.kill()
    await wait_until(lambda: not rig.is_ready(), "the loops say that Redis is gone")
    redis.start()


async def restart_without_data(redis: Server, rig: Rig) -> None:
    redis.kill()
    redis.wipe()
    redis.start()


async def load_slowly(redis: Server, rig: Rig) -> None:
    """It takes connections, and answers LOADING for a second or so."""
    redis.ask("DEBUG", "POPULATE", 2000, "filler")
    redis.ask("BGREWRITEAOF")
    wait_blocking(lambda: "aof_rewrite_in_progress:0" in redis.raw_info(), "the file is written anew")
    wait_blocking(lambda: "aof_rewrite_scheduled:0" in redis.raw_info(), "the file is written anew")
    redis.kill()
    redis.start("--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024", wait=False)
    await wait_until(lambda: told(rig, "LOADING", "loading"), "the server says that it loads")


def told(rig: Rig, *words: str) -> bool:
    faults = [rig.consumer.fault, rig.tail.fault, *(connection.last_error for connection in rig.connections())]
    return any(word in str(fault) for fault in faults for word in words)


async def lose_scripts(redis: Server, rig: Rig) -> None:
    redis.ask("SCRIPT", "FLUSH")


async def flush_all(redis: Server, rig: Rig) -> None:
    redis.ask("FLUSHALL")


async def destroy_groups(redis: Server, rig: Rig) -> None:
    redis.ask("XGROUP", "DESTROY", STREAM, GROUP)
    redis.ask("XGROUP", "DESTROY", BUS, reader_group("r1"))


async def delete_streams_while_blocked(redis: Server, rig: Rig) -> None:
    """7.0 tells the blocked reader UNBLOCKED, later ones NOGROUP."""
    await wait_until(lambda: "blocked_clients:2" in redis.raw_info(), "both reads wait at the server")
    redis.ask("DEL", STREAM, BUS)


async def change_types(redis: Server, rig: Rig) -> None:
    redis.ask("DEL", STREAM, BUS)
    redis.ask("MSET", STREAM, "x", BUS, "x")
    await wait_until(lambda: rig.consumer.fault and rig.tail.fault, "both loops say so")
    redis.ask("DEL", STREAM, BUS)


async def kill_clients(redis: Server, rig: Rig) -> None:
    redis.ask("CLIENT", "KILL", "TYPE", "normal")


async def freeze(redis: Server, rig: Rig) -> None:
    """Longer than a connection may be silent."""
    redis.signal(signal.SIGSTOP)
    await wait_until(
        lambda: not any(c.connected.is_set() for c in rig.connections()[2:]), "the connections are given up"
    )
    redis.signal(signal.SIGCONT)


async def be_slow(redis: Server, rig: Rig) -> None:
    """Shorter than that."""
    redis.ask("DEBUG", "SLEEP", "0.3")


async def run_a_long_script(redis: Server, rig: Rig) -> None:
    redis.ask("CONFIG", "SET", "busy-reply-threshold", 20)
    running = asyncio.create_task(asyncio.to_thread(redis.ask, "EVAL", "while true do end", 0))
    await wait_until(lambda: told(rig, "BUSY"), "the server says that it is busy")
    redis.ask("SCRIPT", "KILL")
    with contextlib.suppress(Exception):
        await running


async def fail_to_save(redis: Server, rig: Rig) -> None:
    """Redis refuses writes when it cannot write its files, on a full disk for one."""
    redis.wipe()
    redis.ask("CONFIG", "SET", "save", "3600 100000")
    redis.ask("BGSAVE")
    await wait_until(lambda: told(rig, "MISCONF"), "the server refuses to write")
    redis.ask("CONFIG", "SET", "save", "")


async def lack_replicas(redis: Server, rig: Rig) -> None:
    redis.ask("CONFIG", "SET", "min-replicas-to-write", 1)
    await wait_until(lambda: told(rig, "NOREPLICAS"), "the server refuses to write")
    redis.ask("CONFIG", "SET", "min-replicas-to-write", 0)


async def pause_writes(redis: Server, rig: Rig) -> None:
    """As a planned failover does."""
    redis.ask("CLIENT", "PAUSE", 300, "WRITE")


async def become_a_replica(redis: Server, rig: Rig) -> None:
    """Of nobody that answers, and then a primary again."""
    redis.ask("REPLICAOF", "127.0.0.1", 1)
    await wait_until(lambda: told(rig, "READONLY"), "the server says that it takes no writes")
    redis.ask("REPLICAOF", "NO", "ONE")


Trouble = Callable[[Server, Rig], Awaitable[None]]
TROUBLES: list[Trouble] = [
    restart,
    restart_without_data,
    load_slowly,
    lose_scripts,
    flush_all,
    destroy_groups,
    delete_streams_while_blocked,
    change_types,
    kill_clients,
    freeze,
    be_slow,
    run_a_long_script,
    fail_to_save,
    lack_replicas,
    pause_writes,
    become_a_replica,
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
async def test_everything_goes_on_after(trouble: Trouble, redis: Server, rig: Rig) -> None:
    await trouble(redis, rig)
    await rig.works()


async def test_everything_goes_on_after_failover(version: str, tmp_path: Path, no_task_left: None) -> None:
    """The primary dies, a replica that lacks its newest entries is promoted, and the name leads there."""
    binary = servers()[version]
    with server(binary, tmp_path / "old") as old, replica_of(old, binary, tmp_path / "new") as new:
        async with Proxy(old.url) as proxy, rigged(proxy.url) as rig:
            await wait_until(lambda: new.ask("XLEN", BUS) == 1, "the replica has the first event")
            new.ask("REPLICAOF", "NO", "ONE")
            await rig.works()
            proxy.lead_to(new.port)
            old.kill()
            await wait_until(lambda: not rig.is_ready(), "the loops say that Redis is gone")
            await rig.works()
