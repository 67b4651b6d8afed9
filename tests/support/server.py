"""A Redis that a test may kill, freeze, restart and starve: its own, not the one that tests share."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from shared.bus.client import Bus
from tests.support.ports import free_port
from tests.support.redis import answers
from tests.support.waiting import wait_blocking

COMMON = ("--bind", "127.0.0.1", "--save", "", "--enable-debug-command", "yes", "--repl-diskless-sync-delay", "0")


class Server:
    def __init__(self, binary: str, folder: Path, *options: str, environ: Mapping[str, str] = {}) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._command = [binary, "--port", str(self.port), "--dir", str(folder), *COMMON, *options]
        self._environ = {**os.environ, **environ}  # noqa: TID251
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, wait: bool = True) -> None:
        """`options` hold for this run only. `wait`: until it answers."""
        self.folder.mkdir(exist_ok=True)
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            command = [*self._command, *options]
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environ
            )
        if wait:
            wait_blocking(lambda: answers(self.url), f"redis-server answers at {self.url}")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """At once, as the kernel does when memory runs out. What it wrote to files stays in them."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wipe(self) -> None:
        shutil.rmtree(self.folder)

    def ask(self, *command: str | int) -> object:
        with Redis.from_url(self.url, decode_responses=True, socket_timeout=10) as client:
            return client.execute_command(*command)

    def replicates(self) -> bool:
        """As a replica: it has all that its primary had when it connected, and is fed what comes."""
        try:
            return "master_link_status:up" in str(self.raw_info())
        except RedisError:
            return False

    def raw_info(self, section: str = "default") -> str:
        with Redis.from_url(self.url, socket_timeout=10) as client:
            client.set_response_callback("INFO", lambda said, **_: said.decode())
            return str(client.execute_command("INFO", section))

    @property
    def version(self) -> tuple[int, ...]:
        found = re.search(r"redis_version:(\d+)\.(\d+)", self.raw_info("server"))
        assert found is not None
        return int(found[1]), int(found[2])


@contextmanager
def server(binary: str, folder: Path, *options: str, environ: Mapping[str, str] = {}) -> Iterator[Server]:
    """Running, and gone at the end, whatever became of it."""
    made = Server(binary, folder, *options, environ=environ)
    try:
        made.start()
        yield made
    finally:
        made.kill()


@contextmanager
def replica_of(primary: Server, binary: str, folder: Path, *options: str, port: int = 0) -> Iterator[Server]:
    """In step with its primary. `port`: of a link to it."""
    with server(binary, folder, "--replicaof", f"127.0.0.1 {port or primary.port}", *options) as made:
        wait_blocking(made.replicates, "the replica is in step")
        yield made


@asynccontextmanager
async def starving(bus: Bus) -> AsyncIterator[None]:
    """Meanwhile the memory of the Redis is full."""
    await bus.commands.call("CONFIG", "SET", "maxmemory", 1)
    try:
        yield
    finally:
        await bus.commands.call("CONFIG", "SET", "maxmemory", 0)
