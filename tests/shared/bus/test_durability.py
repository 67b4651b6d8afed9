"""Confirmed writes, against a real primary with a real replica."""

import asyncio
import logging
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.bus import durability
from shared.bus.client import Bus
from shared.bus.durability import confirmation
from shared.bus.streams import APPEND, GROUP
from shared.config import Safety
from shared.errors import BusUnavailable, ConfigError, NotConfirmed, WrongKeyType
from shared.submit import reserve
from tests.support import tasks
from tests.support.redis import VERSIONS, Proxy, servers
from tests.support.server import Server, replica_of, server
from tests.support.waiting import wait_until

STREAM = "hr:requests"
REPLICATED, SYNCED = Safety(durability="replicated"), Safety(durability="synced")


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing will be confirmed, it need not be waited for."""
    monkeypatch.setattr(durability, "CONFIRM_MS", 50)


@pytest.fixture(params=VERSIONS)
def binary(request: pytest.FixtureRequest) -> str:
    if request.param not in servers():
        pytest.skip(f"no redis-server {request.param} here")
    return servers()[str(request.param)]


@pytest.fixture
def primary(binary: str, tmp_path: Path) -> Iterator[Server]:
    with server(binary, tmp_path / "primary", "--appendonly", "yes", "--appendfsync", "always") as running:
        yield running


@pytest.fixture
def replica(primary: Server, binary: str, tmp_path: Path) -> Iterator[Server]:
    with replica_of(primary, binary, tmp_path / "replica", "--appendonly", "yes", "--appendfsync", "always") as running:
        yield running


@pytest.fixture
async def bus(primary: Server, replica: Server, no_task_left: None) -> AsyncIterator[Bus]:
    async with Bus(primary.url, name="test", safety=REPLICATED) as bus:
        yield bus


async def write(bus: Bus, word: str, *, patience_s: float = 10.0) -> Any:
    return await bus.run(APPEND, [STREAM], [0, "word", word], durable=True, patience_s=patience_s)


def calls(redis: Server, command: str) -> int:
    """How often Redis has run it."""
    found = re.search(rf"cmdstat_{command}:calls=(\d+)", redis.raw_info("commandstats"))
    return int(found[1]) if found else 0


async def test_confirmed_write_is_on_the_replica(bus: Bus, replica: Server) -> None:
    id = await write(bus, "kept")
    assert (id.decode(), {"word": "kept"}) in replica.ask("XRANGE", STREAM, "-", "+")  # type: ignore[operator]


async def test_calls_made_at_once_share_a_wait(bus: Bus, primary: Server, replica: Server) -> None:
    ids = await asyncio.gather(*(write(bus, str(n)) for n in range(50)))
    assert len(set(ids)) == 50
    assert calls(primary, "wait") <= 4
    assert replica.ask("XLEN", STREAM) == 50


async def test_write_that_no_replica_has_is_not_confirmed_and_is_when_repeated_later(bus: Bus, replica: Server) -> None:
    replica.signal(signal.SIGSTOP)
    with pytest.raises(BusUnavailable, match="WAIT counts"):
        await write(bus, "lost?", patience_s=0)
    waiting = asyncio.create_task(bus.run(GROUP, [STREAM], ["front"], durable=True))
    await asyncio.sleep(0)
    assert not waiting.done()
    replica.signal(signal.SIGCONT)
    assert await waiting in (b"made", b"stands")


async def test_repeat_that_changes_nothing_waits_for_what_another_connection_wrote(
    short: None, bus: Bus, replica: Server
) -> None:
    """Redis waits for the last write of the connection that asks. One that has written nothing is confirmed at once, so the
    repeat of a lost call, over a new connection, would be confirmed while no replica has what it found done."""
    replica.signal(signal.SIGSTOP)
    assert await bus.run(GROUP, [STREAM], ["front"]) == b"made"
    with pytest.raises(BusUnavailable, match="WAIT counts"):
        await bus.run(GROUP, [STREAM], ["front"], durable=True, patience_s=0)
    replica.signal(signal.SIGCONT)


async def test_faulty_call_of_a_group_fails_alone(bus: Bus) -> None:
    await bus.commands.call("SET", "hr:text", "x")
    bad = bus.run(APPEND, ["hr:text"], [0, "word", "b"], durable=True)
    outcomes = await asyncio.gather(write(bus, "a"), bad, write(bus, "c"), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [bytes, WrongKeyType, bytes]


async def test_lost_scripts_are_loaded_again(bus: Bus) -> None:
    await write(bus, "before")
    await bus.commands.call("SCRIPT", "FLUSH")
    await write(bus, "after")


async def test_group_is_repeated_over_a_lost_connection(primary: Server, replica: Server) -> None:
    async with Proxy(primary.url) as proxy, Bus(proxy.url, name="cut", safety=REPLICATED) as bus:
        await write(bus, "before")
        writing = asyncio.gather(*(bus.run(GROUP, [f"hr:{n}"], ["g"], durable=True) for n in range(10)))
        await asyncio.sleep(0)
        proxy.cut()
        assert set(await writing) <= {b"made", b"stands"}


async def test_acknowledged_writes_survive_the_loss_of_the_primary(bus: Bus, primary: Server, replica: Server) -> None:
    kept = []
    bus._confirming.connection._timeout_s = 1  # type: ignore[union-attr]

    async def go_on(name: int) -> None:
        for n in range(1000):
            kept.append(await write(bus, f"{name}-{n}", patience_s=0))

    writers = [asyncio.create_task(go_on(name)) for name in range(8)]
    await wait_until(lambda: len(kept) > 200, "there are acknowledged writes")
    primary.kill()
    await asyncio.wait(writers, timeout=20)
    assert all(isinstance(writer.exception(), BusUnavailable) for writer in writers)
    replica.ask("REPLICAOF", "NO", "ONE")
    found = {entry for entry, _ in replica.ask("XRANGE", STREAM, "-", "+")}  # type: ignore[attr-defined]
    assert {id.decode() for id in kept} <= found


async def test_acceptance_and_end_of_a_task_are_confirmed_and_nothing_else_waits(bus: Bus, primary: Server) -> None:
    owner = await tasks.worker(bus)
    await reserve(bus, tasks.LIMITS, "default", "key", tasks.new_id(), "print")
    assert calls(primary, "wait") == 1
    hand = await tasks.running(bus, owner)
    assert calls(primary, "wait") == 2  # submit; not admit, dispatch, start
    assert await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 1)) == "ok"
    assert calls(primary, "wait") == 2
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 2, 2)) == "ok"
    assert calls(primary, "wait") == 3


async def test_fast_waits_for_nobody(primary: Server, replica: Server) -> None:
    async with Bus(primary.url, name="test") as bus:
        await write(bus, "quick")
    assert (calls(primary, "wait"), calls(primary, "waitaof")) == (0, 0)


async def test_synced_waits_for_the_disk(primary: Server) -> None:
    """7.0 has no WAITAOF: with appendfsync always it answers nothing that is not on the disk."""
    async with Bus(primary.url, name="test", safety=SYNCED) as bus:
        assert await write(bus, "kept")
    waited = calls(primary, "waitaof") + calls(primary, "wait")
    assert waited >= 1


async def test_synced_with_replicas_waits_for_their_disks(primary: Server, replica: Server) -> None:
    safety = Safety(durability="synced", replicas=1)
    if primary.version < (7, 2):
        with pytest.raises(ConfigError, match="cannot wait for the disks of replicas"):
            await reached(primary, safety)
        return
    async with Bus(primary.url, name="test", safety=safety) as bus:
        await write(bus, "kept")
        replica.ask("CONFIG", "SET", "appendonly", "no")
        with pytest.raises(BusUnavailable, match="WAITAOF counts"):
            await write(bus, "on one disk", patience_s=0)


async def reached(server: Server, safety: Safety) -> None:
    async with Bus(server.url, name="test", safety=safety) as bus:
        await bus.reach()


async def test_server_that_cannot_keep_it_is_refused_at_the_start(primary: Server) -> None:
    primary.ask("CONFIG", "SET", "appendonly", "no")
    with pytest.raises(ConfigError, match="CONFIG SET appendonly yes"):
        await reached(primary, SYNCED)
    primary.ask("CONFIG", "SET", "appendonly", "yes")
    primary.ask("CONFIG", "SET", "appendfsync", "no")
    with pytest.raises(ConfigError, match="CONFIG SET appendfsync"):
        await reached(primary, SYNCED)


async def test_append_only_file_switched_off_under_it_is_not_confirmed(primary: Server) -> None:
    if primary.version < (7, 2):
        pytest.skip("nothing tells: without WAITAOF the setting is looked at when a service starts")
    async with Bus(primary.url, name="test", safety=SYNCED) as bus:
        await write(bus, "before")
        primary.ask("CONFIG", "SET", "appendonly", "no")
        with pytest.raises(BusUnavailable, match="WAITAOF"):
            await write(bus, "after", patience_s=0)


async def test_missing_replicas_are_told_at_the_start_and_waited_for(
    short: None, primary: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with Bus(primary.url, name="test", safety=REPLICATED) as bus:
        await bus.reach()
        assert "wants 1 replicas, and Redis has 0" in caplog.text
        with pytest.raises(BusUnavailable):
            await write(bus, "alone", patience_s=0)


def test_replicated_has_at_least_one_replica() -> None:
    assert confirmation(REPLICATED, has_waitaof=True)[1] == [1]
    assert confirmation(Safety(durability="replicated", replicas=2), has_waitaof=False)[1] == [2]


def test_not_confirmed_is_a_redis_out_of_reach() -> None:
    """So it is answered with 503 and the advice to repeat."""
    assert issubclass(NotConfirmed, BusUnavailable)
