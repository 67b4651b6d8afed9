"""All replicas of a deployment: started together, stopped in the order in which work flows."""

import asyncio
from collections.abc import Iterable
from functools import partial

from services.cli.up.process import Program
from services.cli.up.replica import Replica
from services.cli.up.screen import Screen
from shared.clock import monotonic_s

STOP_ORDER = ("ingress", "scheduler", "inference", "notifier", "redis")
"""Take nothing new, finish what runs, deliver it; Redis last, for everybody needs it."""
GRACE_S = 25.0
"""More than the 20 s a service may drain (shared/lifespan.py), less than the 30 s that a supervisor of ours would wait."""


class Deployment:
    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._replicas: list[Replica] = []
        self._killed = False
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails when a replica cannot be kept running."""

    async def start(self, programs: Iterable[Program]) -> dict[str, list[str]]:
        """Start all at once; the URLs of each service's replicas, when all are ready."""
        started_at_s = monotonic_s()
        new = [Replica(program, self._screen) for program in programs]
        self._replicas += new
        for replica in new:
            replica.start().add_done_callback(self._on_end)
            replica.url.add_done_callback(partial(self._on_ready, replica.program.name, started_at_s))

        def line() -> str:
            late = ", ".join(replica.program.name for replica in new if not replica.url.done())
            return f"  waiting for {late}, {monotonic_s() - started_at_s:.0f} s"

        progress = asyncio.create_task(self._screen.watch(line))
        try:
            urls = await asyncio.gather(*(replica.url for replica in new))
        finally:
            progress.cancel()
            await asyncio.wait([progress])
        by_service: dict[str, list[str]] = {}
        for replica, url in zip(new, urls, strict=True):
            by_service.setdefault(replica.program.service, []).append(url)
        return by_service

    def _on_ready(self, name: str, started_at_s: float, url: asyncio.Future[str]) -> None:
        if not url.cancelled():
            self._screen.say(f"  {name:<12} {url.result():<28} {monotonic_s() - started_at_s:5.1f} s".rstrip())

    def _on_end(self, keeping: "asyncio.Task[None]") -> None:
        if not keeping.cancelled() and (fault := keeping.exception()) and not self.broken.done():
            self.broken.set_exception(fault)

    def hang_up(self) -> None:
        """Have the services read headrace.toml at once."""
        for replica in self._replicas:
            if replica.program.service != "redis":
                replica.hang_up()

    async def stop(self) -> None:
        for service in STOP_ORDER:
            group = [replica for replica in self._replicas if replica.program.service == service]
            await asyncio.gather(*(replica.stop(0 if self._killed else GRACE_S) for replica in group))
        self.broken.cancel()

    def kill(self) -> None:
        """At once, without order; `stop` then only clears up."""
        self._killed = True
        for replica in self._replicas:
            replica.kill()
