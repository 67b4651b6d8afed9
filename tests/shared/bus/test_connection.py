"""The multiplexed connection: one write for many, replies in order, and no way to wedge it."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.bus import client
from shared.bus.client import BLOCK_MS, Bus, is_passing
from shared.bus.connection import TIMEOUT_S, Connection, translate
from shared.bus.streams import APPEND, append, ensure_group
from shared.errors import (
    BusError,
    BusUnavailable,
    ClusterRedirect,
    CommandRefused,
    ConnectionLost,
    MemoryFull,
    WrongKeyType,
)
from tests.support.ports import free_port
from tests.support.redis import Proxy, find_server
from tests.support.server import server
from tests.support.waiting import wait_until

SHORT_S = 0.2
"""A timeout that a test can wait for."""


@pytest.fixture
async def proxy(redis_url: str, no_task_left: None) -> AsyncIterator[Proxy]:
    async with Proxy(redis_url) as proxy:
        yield proxy


@pytest.fixture
async def connection(proxy: Proxy) -> AsyncIterator[Connection]:
    """Through the proxy, connected, with a short timeout."""
    connection = Connection(proxy.url, name="test", timeout_s=SHORT_S)
    connection.open()
    await connection.call("PING")
    yield connection
    await connection.close()


class Tearing(Proxy):
    """Cuts everything in the middle of what Redis answers next."""

    keep: int | None = None
    """Bytes of that answer that still arrive; None: nothing is torn."""

    async def pass_on(self, data: bytes, sink: asyncio.StreamWriter, *, downstream: bool) -> None:
        if downstream and self.keep is not None:
            data, self.keep = data[: self.keep], None
            await super().pass_on(data, sink, downstream=downstream)
            self.cut()
        else:
            await super().pass_on(data, sink, downstream=downstream)


@pytest.fixture
async def tearing(redis_url: str, no_task_left: None) -> AsyncIterator[Tearing]:
    async with Tearing(redis_url) as proxy:
        yield proxy


async def outcome(future: asyncio.Future[object]) -> object:
    """What became of a command: its reply or its error."""
    await asyncio.wait([future], timeout=5)
    assert future.done(), "a command that waits for ever"
    return future.exception() or future.result()


async def test_commands_of_one_turn_leave_as_one_write(connection: Connection, proxy: Proxy) -> None:
    proxy.upstream.clear()
    replies = await asyncio.gather(*(connection.call("ECHO", str(n)) for n in range(100)))
    assert replies == [str(n).encode() for n in range(100)]
    assert len(proxy.upstream) == 1


async def test_replies_go_to_their_callers_also_when_some_are_errors(connection: Connection) -> None:
    calls = [connection.send("ECHO", "a"), connection.send("NONSENSE"), connection.send("ECHO", "b")]
    first, error, last = [await outcome(call) for call in calls]
    assert (first, last) == (b"a", b"b")
    assert isinstance(error, CommandRefused)


async def test_wrong_type_is_an_error_of_its_own(connection: Connection) -> None:
    await connection.call("SET", "hr:text", "x")
    with pytest.raises(WrongKeyType):
        await connection.call("ZADD", "hr:text", 1, "x")


async def test_cancelled_caller_disturbs_nobody(connection: Connection) -> None:
    before, cancelled, after = (connection.send("ECHO", word) for word in ("a", "b", "c"))
    cancelled.cancel()
    assert [await before, await after] == [b"a", b"c"]
    written, late = connection.send("ECHO", "d"), connection.send("ECHO", "e")
    await wait_until(lambda: connection.written_commands >= 5, "the commands are written")
    written.cancel()
    assert await late == b"e"


async def test_killed_connection_fails_what_is_in_flight_and_serves_what_comes_later(redis_url: str, bus: Bus) -> None:
    victim = Connection(redis_url, name="victim")
    victim.open()
    id = await victim.call("CLIENT", "ID")
    in_flight = victim.send("BLPOP", "hr:nothing", 5)
    await wait_until(lambda: victim.written_commands == 2, "the command is written")
    await bus.commands.call("CLIENT", "KILL", "ID", id)
    assert isinstance(await outcome(in_flight), ConnectionLost)
    assert await victim.call("ECHO", "later") == b"later"
    await victim.close()


async def test_cut_connection_writes_no_command_twice(connection: Connection, proxy: Proxy) -> None:
    verdicts = []
    for round in range(20):
        calls = [connection.send("INCR", "hr:count") for _ in range(5)]
        if round % 4 == 3:
            await asyncio.sleep(0)
            proxy.cut()
        verdicts += [await outcome(call) for call in calls]
    count = await connection.call("GET", "hr:count")
    answered = [verdict for verdict in verdicts if isinstance(verdict, int)]
    assert answered == sorted(set(answered))
    assert len(answered) <= int(count) <= 100
    assert all(isinstance(verdict, int | ConnectionLost) for verdict in verdicts)


async def test_half_open_connection_times_out_and_recovers(connection: Connection, proxy: Proxy) -> None:
    proxy.stall()
    assert isinstance(await outcome(connection.send("ECHO", "lost")), ConnectionLost)
    proxy.flow()
    assert await connection.call("ECHO", "found") == b"found"


@pytest.mark.parametrize("keep", [1, 3, 50])
async def test_reply_torn_in_the_middle_is_no_reply(tearing: Tearing, keep: int) -> None:
    connection = Connection(tearing.url, name="test")
    connection.open()
    await connection.call("PING")
    tearing.keep = keep
    assert isinstance(await outcome(connection.send("ECHO", "x" * 100)), ConnectionLost)
    assert await connection.call("ECHO", "whole") == b"whole"
    await connection.close()


async def test_script_whose_reply_was_lost_is_repeated(tearing: Tearing, bus: Bus) -> None:
    """It has run, and its repeat finds that."""
    async with Bus(tearing.url, name="test") as through:
        await append(through, "hr:requests", {"word": "before"})
        tearing.keep = 0
        await ensure_group(through, "hr:requests", "front")
        assert tearing.keep is None
    assert len(await bus.commands.call("XINFO", "GROUPS", "hr:requests")) == 1


async def test_command_whose_outcome_nobody_waits_for_fails_without_a_word(
    connection: Connection, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    connection.post("NONSENSE")
    await connection.call("PING")
    proxy.stall()
    connection.post("PING")
    await wait_until(lambda: connection.written_commands == 4, "it is written")
    proxy.cut()
    proxy.flow()
    await wait_until(lambda: not connection.connected.is_set(), "the connection is lost")
    assert await connection.call("ECHO", "later") == b"later"
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_redis_that_has_become_a_replica_is_left_and_its_name_looked_up_anew(
    proxy: Proxy, tmp_path: Path
) -> None:
    """Behind the name there may be the new primary by then. Reads would go on, and tell what is no longer true."""
    with server(find_server(), tmp_path / "old") as old, server(find_server(), tmp_path / "new") as new:
        proxy.lead_to(old.port)
        async with Bus(proxy.url, name="test") as bus:
            await append(bus, "hr:requests", {"word": "before"})
            old.ask("REPLICAOF", "127.0.0.1", new.port)
            proxy.lead_to(new.port)  # connections that stand stay where they are
            await append(bus, "hr:requests", {"word": "after"})
        assert new.ask("XLEN", "hr:requests") == 1


async def test_redirect_of_a_cluster_is_told_and_not_tried_again_and_again(tmp_path: Path) -> None:
    enabled, gossip = ("--cluster-enabled", "yes", "--cluster-port"), free_port()
    with (
        server(find_server(), tmp_path / "a", *enabled, str(free_port())) as one,
        server(find_server(), tmp_path / "b", *enabled, str(gossip)) as other,
    ):
        other.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        one.ask("CLUSTER", "MEET", "127.0.0.1", other.port, gossip)
        await wait_until(lambda: "cluster_state:ok" in str(one.ask("CLUSTER", "INFO")), "the nodes know each other")
        async with Bus(one.url, name="test") as bus:
            with pytest.raises(ClusterRedirect, match=r"MOVED .* name a plain server"):
                await append(bus, "hr:requests", {"word": "lost"})


def test_blocking_read_ends_well_before_its_connection_is_given_up() -> None:
    assert BLOCK_MS / 1000 + 3 <= TIMEOUT_S


async def test_server_that_accepts_and_never_answers_does_not_wedge_the_connection(proxy: Proxy) -> None:
    """The handshake of a new connection is subject to the timeout too: a frozen Redis still accepts connections."""
    proxy.stall()
    connection = Connection(proxy.url, name="test", timeout_s=SHORT_S)
    connection.open()
    assert isinstance(await outcome(connection.send("ECHO", "early")), BusUnavailable)
    proxy.flow()
    assert await connection.call("ECHO", "later") == b"later"
    await connection.close()


async def test_fault_of_the_library_below_ends_the_connection_and_not_the_bus(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop raises RuntimeError for a write to a transport that was closed in the same turn of the loop."""
    write = connection._link.send_packed_command

    async def closed(*_: object, **__: object) -> None:
        monkeypatch.setattr(connection._link, "send_packed_command", write)
        raise RuntimeError("the handler is closed")

    monkeypatch.setattr(connection._link, "send_packed_command", closed)
    assert isinstance(await outcome(connection.send("ECHO", "early")), ConnectionLost)
    assert await outcome(connection.send("ECHO", "later")) == b"later"


@pytest.mark.parametrize("data", [b"+OK\r\n", b"-ERR out of turn\r\n", b"nonsense\r\n"])
async def test_answer_that_nobody_asked_for_breaks_the_connection_and_not_the_bus(
    connection: Connection, proxy: Proxy, data: bytes
) -> None:
    proxy.inject(data)
    await wait_until(lambda: not connection.connected.is_set(), "the connection is given up")
    assert await connection.call("ECHO", "later") == b"later"


async def test_without_a_server_commands_fail_in_time_and_the_reason_is_named() -> None:
    connection = Connection("redis://127.0.0.1:1", name="test", timeout_s=SHORT_S)
    connection.open()
    error = await outcome(connection.send("PING"))
    assert isinstance(error, BusUnavailable)
    assert "127.0.0.1:1" in str(error)
    await connection.close()


async def test_commands_sent_before_the_connection_stands_keep_their_order(proxy: Proxy) -> None:
    connection = Connection(proxy.url, name="test")
    connection.open()
    calls = [connection.send("RPUSH", "hr:list", n) for n in range(10)]
    assert [await call for call in calls] == list(range(1, 11))
    await connection.close()


async def test_closing_fails_what_waits_and_everything_afterwards(redis_url: str, bus: Bus) -> None:
    connection = Connection(redis_url, name="test")
    connection.open()
    await connection.call("PING")
    waiting = connection.send("BLPOP", "hr:nothing", 5)
    await connection.close()
    assert isinstance(await outcome(waiting), BusUnavailable)
    assert isinstance(await outcome(connection.send("PING")), BusUnavailable)


async def test_lost_scripts_are_loaded_again(bus: Bus) -> None:
    await ensure_group(bus, "hr:requests", "front")
    await bus.commands.call("SCRIPT", "FLUSH")
    await append(bus, "hr:requests", {"word": "after"})
    assert await bus.commands.call("XLEN", "hr:requests") == 1


async def test_script_is_repeated_over_a_connection_lost_while_scripts_are_loaded_again(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(connection: Connection) -> None:
        monkeypatch.setattr(client, "load_scripts", load_scripts)
        raise ConnectionLost("lost")

    load_scripts = client.load_scripts
    await bus.commands.call("SCRIPT", "FLUSH")
    monkeypatch.setattr(client, "load_scripts", lost)
    await append(bus, "hr:requests", {"word": "kept"})
    assert client.load_scripts is load_scripts
    assert await bus.commands.call("XLEN", "hr:requests") == 1


async def test_scripts_are_loaded_before_anything_is_run_on_a_new_connection(bus: Bus) -> None:
    assert await bus.commands.call("SCRIPT", "EXISTS", APPEND.sha) == [1]


async def test_script_is_repeated_over_a_lost_connection(proxy: Proxy) -> None:
    async with Bus(proxy.url, name="test") as bus:
        await ensure_group(bus, "hr:requests", "front")
        running = asyncio.create_task(ensure_group(bus, "hr:requests", "front"))
        await asyncio.sleep(0)
        proxy.cut()
        await running


async def test_script_gives_up_after_its_patience() -> None:
    async with Bus("redis://127.0.0.1:1", name="test") as bus:
        for connection in (bus.commands, bus.bulk):
            connection._timeout_s = SHORT_S
        with pytest.raises(BusUnavailable, match="append"):
            await bus.run(APPEND, ["hr:requests"], [0, "word", "lost"], patience_s=0.0)


@pytest.mark.parametrize(
    "error",
    [
        NoScriptError("No matching script.", status_code="NOSCRIPT"),
        ReadOnlyError("You can't write against a read only replica.", status_code="READONLY"),
        TryAgainError("Multiple keys request during rehashing of slot", status_code="TRYAGAIN"),
        ClusterDownError("CLUSTERDOWN The cluster is down", status_code="CLUSTERDOWN"),
        MasterDownError("MASTERDOWN Link with MASTER is down", status_code="MASTERDOWN"),
        ResponseError("BUSY Redis is busy running a script."),
        ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
        ResponseError("UNKILLABLE Sorry the script already executed write commands"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_answers_that_pass_are_retried(error: ResponseError) -> None:
    """redis-py cuts the code off the text of the errors it knows."""
    translated = translate(error)
    assert isinstance(translated, CommandRefused)
    assert is_passing(translated)


@pytest.mark.parametrize("text", ["WRONGTYPE Operation", "ERR unknown command", "BUSYGROUP Consumer Group name exists"])
def test_answers_about_the_call_itself_are_not_retried(text: str) -> None:
    translated = translate(ResponseError(text))
    assert isinstance(translated, CommandRefused)
    assert not is_passing(translated)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ResponseError("WRONGTYPE Operation"), WrongKeyType),
        (OutOfMemoryError("command not allowed", status_code="OOM"), MemoryFull),
        (MovedError("866 127.0.0.1:7001", status_code="MOVED"), ClusterRedirect),
        (AskError("866 127.0.0.1:7001", status_code="ASK"), ClusterRedirect),
        (RedisConnectionError("reset"), ConnectionLost),
        (RedisTimeoutError("slow"), ConnectionLost),
        (BusyLoadingError("Redis is loading the dataset in memory", status_code="LOADING"), ConnectionLost),
        (AuthenticationError("invalid password"), ConnectionLost),
        (OSError(111, "refused"), ConnectionLost),
        (TimeoutError(), ConnectionLost),
        (BusUnavailable("closed"), BusUnavailable),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_every_error_of_the_client_has_its_translation(error: Exception, kind: type[BusError]) -> None:
    assert type(translate(error)) is kind


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
