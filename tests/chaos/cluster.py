"""The processes of a deployment, each kept running and on a link of its own, and the Redis behind the links."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.cli.up.home import claim
from services.cli.up.plan import Options, make_plan
from services.cli.up.process import Process, Program
from services.cli.up.redis_server import own_server
from shared import config
from shared.config import EngineName
from shared.keys import ShardKeys, shard_keys
from tests.chaos.history import History
from tests.chaos.link import Link
from tests.support.ports import free_port
from tests.support.processes import descendants
from tests.support.waiting import wait_until

PAUSE_S = 0.3
"""Between a death and the next start: soon, for a dead process is hit by no fault."""
START_S = 180.0
"""vLLM on two cores that others use, too."""
STOP_ORDER = ("ingress", "scheduler", "inference", "notifier", "redis")
GRACE_S = 40.0


class Member:
    """A program kept running. Whoever ends it says so before: any other end is a breach."""

    def __init__(self, program: Program, link: Link | None, history: History) -> None:
        self.program, self.link = program, link
        self._history = history
        self.process: Process | None = None
        self.ready = asyncio.Event()
        self.url = ""
        self.starts = 0
        self._doom = ""
        self._keeping: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        self.program.log.unlink(missing_ok=True)
        self._keeping = asyncio.create_task(self._keep(), name=self.program.name)

    def send(self, number: signal.Signals) -> None:
        """To the process alone, not to what it has started."""
        if number in (signal.SIGTERM, signal.SIGKILL):
            self._doom = number.name
            self.ready.clear()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def stop(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        if self.process is not None:
            self.send(signal.SIGCONT)
            await self.process.stop(GRACE_S)
            ended = await self.process.ended()
            if ended not in ("exit code 0", "killed by SIGKILL" if self._doom == "SIGKILL" else ""):
                self._history.note(self.program.name, "died", how=ended, why="stop")

    def below(self, name: str) -> list[int]:
        """Processes that it has started, by a word of their command line."""
        return [pid for pid in descendants(self.pid) if name in Path(f"/proc/{pid}/cmdline").read_text()]

    async def _keep(self) -> None:
        while True:
            self._doom = ""
            self.process = Process(self.program)
            self.starts += 1
            url = await self._ready(self.process)
            if url is not None and not self._doom:
                self.url = url
                self.ready.set()
            how = await self.process.ended()
            self.ready.clear()
            self._history.note(self.program.name, "died", how=how, why=self._doom)
            await asyncio.sleep(PAUSE_S)

    async def _ready(self, process: Process) -> str | None:
        try:
            async with asyncio.timeout(START_S):
                return await process.ready()
        except TimeoutError:
            self._history.note(self.program.name, "stuck", after_s=START_S, last=process.last_lines())
            process.kill()
            return None


class Cluster:
    def __init__(self, members: Mapping[str, list[Member]], port: int, deployed: config.Config, folder: Path) -> None:
        self.members, self.port, self.config, self.folder = members, port, deployed, folder
        self.redis: Any = Redis(port=port, decode_responses=True, socket_timeout=30, socket_connect_timeout=5)
        """Past all links."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def shards(self) -> list[ShardKeys]:
        return [shard_keys(name, number) for name, pool in self.config.pools.items() for number in range(pool.shards)]

    @property
    def server(self) -> Member:
        return self.members["redis"][0]

    def of(self, *services: str) -> list[Member]:
        return [member for service in services for member in self.members[service]]

    @property
    def all(self) -> list[Member]:
        return self.of("ingress", "scheduler", "inference", "notifier")

    def urls(self, service: str) -> list[str]:
        return [member.url for member in self.of(service)]

    def sockets(self) -> list[str]:
        return [f"ws{url.removeprefix('http')}/v1/ws" for url in self.urls("notifier")]

    async def wait_ready(self, members: Iterable[Member], timeout_s: float = START_S) -> None:
        for member in members:
            await wait_until(member.ready.is_set, f"{member.program.name} is ready", timeout_s)

    async def redis_answers(self) -> bool:
        try:
            async with Redis(port=self.port, socket_timeout=1, socket_connect_timeout=1) as probe:
                return bool(await probe.ping())
        except (RedisError, OSError):
            return False


@contextlib.asynccontextmanager
async def cluster(
    folder: Path, file: str, replicas: str, engine: EngineName, history: History
) -> AsyncIterator[tuple[Cluster, Link]]:
    """A running deployment, and a link for the clients' own use. Raises: AssertionError if it does not get ready."""
    (folder / "headrace.toml").write_text(file)
    deployed = config.load(str(folder / "headrace.toml"))
    with claim(folder / "data") as home:
        plan = make_plan(Options(engine=engine, replicas=replicas, port=0, ws_port=0), deployed, _environ())
        port = free_port()
        server = Member(own_server(home, port, _environ()), None, history)
        async with contextlib.AsyncExitStack() as links:
            members = [await _member(program, port, history, links) for program in plan.programs(home, "")]
            by_service = {name: [m for m in members if m.program.service == name] for name in plan.replicas}
            running = Cluster(by_service | {"redis": [server]}, port, deployed, folder)
            own = await links.enter_async_context(Link(port))
            try:
                for member in (server, *running.all):
                    member.start()
                await running.wait_ready([server, *running.all])
                yield running, own
            finally:
                await running.redis.aclose()
                for service in STOP_ORDER:
                    await asyncio.gather(*(member.stop() for member in running.of(service)))


async def _member(program: Program, port: int, history: History, links: contextlib.AsyncExitStack) -> Member:
    link = await links.enter_async_context(Link(port))
    environ = {**program.environ, "REDIS_URL": link.url}
    return Member(msgspec.structs.replace(program, environ=environ), link, history)


def _environ() -> dict[str, str]:
    ours = ("HEADRACE_", "REDIS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}  # noqa: TID251
