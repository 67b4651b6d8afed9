"""How every service starts, says that it is ready, and stops."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import uvicorn
import uvloop
from starlette.types import ASGIApp

from shared.errors import ConfigError, HeadraceError
from shared.parent import die_with_parent
from shared.probes import Loop
from shared.settings import DRAIN_S, CommonSettings, from_environment

log = logging.getLogger(__name__)

ORPHAN_S = 2.0
"""What a service whose parent was killed may still take; leases and groups of the dead are dealt with by others."""

LATE_S = 1.0
"""A start that takes longer opens the port before it is over: then those want an answer who watch the service. Until then whoever
connects is refused, and goes to another replica at once."""
CLOSING_S = 5
"""For calls to end whose connections were closed."""

Settings = TypeVar("Settings", bound=CommonSettings)
Made = TypeVar("Made")


def main(service: str, kind: type[Settings], run: Callable[[Settings], Awaitable[None]]) -> None:
    """Load the settings, run the service, and exit: 0 stopped as asked, 1 a fault, 2 wrong settings."""
    try:
        settings = from_environment(kind, service)
    except ConfigError as error:
        sys.exit(_complain(service, error, code=2))
    logging.basicConfig(
        level=settings.log_level.upper(), format=f"%(asctime)s %(levelname)s {service} %(name)s: %(message)s"
    )
    if settings.die_with_parent:
        die_with_parent()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until shared/reload.py listens
    _end_at_once()
    log.info("settings: %s", settings.describe())
    try:
        uvloop.run(_run(run, settings))
    except HeadraceError as error:
        sys.exit(_complain(service, error, code=1))


async def _run(run: Callable[[Settings], Awaitable[None]], settings: Settings) -> None:
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # default thresholds cost 2.5x in p99 under load (docs/performance.md)
    await run(settings)


def _complain(service: str, error: Exception, *, code: int) -> int:
    sys.stderr.write(f"{service}: {error}\n")
    return code


def _end_at_once() -> None:
    """On SIGTERM, until `stop_requested`: nothing was begun. The first process of a container would not even be ended by it."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def stop_requested() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets."""
    stop, parent = asyncio.Event(), os.getppid()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        stop.set()
        if os.getppid() != parent:  # Redis went with the parent too: nothing can be handed back
            loop.call_later(ORPHAN_S, os._exit, 1)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


async def unless_stopped(stop: asyncio.Event, *work: Coroutine[Any, Any, Made]) -> list[Made] | None:
    """What each of `work` made; None: `stop` came first, and what was under way is cancelled. Raises: what they raise."""
    doing, stopping = [asyncio.create_task(each) for each in work], asyncio.create_task(stop.wait())
    done = asyncio.gather(*doing)
    either: list[asyncio.Future[Any]] = [done, stopping]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return await done if done.done() else None
    finally:
        for task in (*doing, stopping):
            task.cancel()
        await asyncio.gather(done, *doing, stopping, return_exceptions=True)


@contextlib.asynccontextmanager
async def running(loops: Sequence[Loop]) -> AsyncIterator[None]:
    """The loops run until the block is left; then they are told to stop, and waited for."""
    async with asyncio.TaskGroup() as tasks:
        for loop in loops:
            tasks.create_task(loop.run())
        yield
        await asyncio.gather(*(loop.stop() for loop in loops))


async def all_passed(loops: Sequence[Loop]) -> None:
    """Return once each has made a pass."""
    while any(loop.last_pass_s is None for loop in loops):
        await asyncio.sleep(0.01)


def announce_ready(settings: CommonSettings, service: str, url: str) -> None:
    """Tell whoever started this process (HEADRACE_READY_FD) that requests are served at `url`."""
    log.info("ready at %s", url)
    if settings.ready_fd is not None:
        with os.fdopen(settings.ready_fd, "wb") as pipe:
            pipe.write(msgspec.json.encode({"service": service, "url": url}) + b"\n")


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: a service decides itself when its sockets close."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """A service's HTTP port. The socket is bound at once, so that a port in use is known before anything else starts."""

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        websockets: bool = False,
        backlog: int = 2048,
        drain_s: float = DRAIN_S,
    ) -> None:
        """Raises: ConfigError if the address cannot be bound."""
        self._socket = _bind(host, port)
        bound_host, bound_port = self._socket.getsockname()[:2]
        self.url = f"http://{bound_host}:{bound_port}"
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="websockets-sansio" if websockets else "none",
            ws_per_message_deflate=False,
            ws_max_size=64 * 1024,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            backlog=backlog,
            timeout_graceful_shutdown=int(drain_s) + CLOSING_S,
            timeout_keep_alive=75,
        )
        self._server, self._drain_s = _Server(config), drain_s
        self._serving: asyncio.Task[None] | None = None
        self._late: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._late = asyncio.get_running_loop().call_later(LATE_S, self._listen)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        serving = self._listen()
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.005)

    def _listen(self) -> asyncio.Task[None]:
        if self._serving is None:
            log.info("listening at %s", self.url)
            self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http")
        return self._serving

    async def stop(self) -> None:
        """Accept nothing more, let what is under way end within `drain_s`; then close its connections.

        A client whose connection ends asks again, elsewhere. The server's own way is to cancel the calls, which answers each
        with a 500: that would say that the request failed, and many clients would give up.
        """
        self._server.should_exit = True
        if self._late is not None:
            self._late.cancel()
        if self._serving is None:
            self._socket.close()
            return
        await asyncio.wait([self._serving], timeout=self._drain_s)
        for connection in list(self._server.server_state.connections):
            connection.transport.close()
        await self._serving


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)  # bounds what a slow reader can absorb
        bound.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}. Choose another port, or 0.") from None
    return bound
