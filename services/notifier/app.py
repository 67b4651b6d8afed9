"""Wiring of the notifier, top to bottom."""

import asyncio

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp

from services.notifier.line import Line
from services.notifier.outbox import Outbox
from services.notifier.settings import Settings
from services.notifier.socket import Sockets
from services.notifier.sse import Events
from services.notifier.webhooks import Webhooks
from shared import config, keys
from shared.bus.client import Bus
from shared.bus.consume import Consumer
from shared.bus.tail import Tail, Tails
from shared.cancel import Canceller
from shared.ids import new_nonce
from shared.lifespan import HttpServer, announce_ready, running, stop_requested, unless_stopped
from shared.origins import origin_pattern
from shared.place import Outlooks
from shared.probes import Door, Loop, passing, probe_routes
from shared.quota import Quotas
from shared.reload import watching

OUTBOX_PER_READ = 100
DRAIN_SPREAD_MS = 5000
"""Over which the clients of a stopping replica come back elsewhere: no storm on those that stay."""


async def run(settings: Settings) -> None:
    stop = stop_requested()
    deployment = config.load(settings.config)
    replica = f"notifier-{new_nonce()}"
    async with (
        Bus(settings.redis_url, name=replica, safety=deployment) as bus,
        Webhooks(bus, deployment, replica) as webhooks,
    ):
        tails = [
            Tail(bus, pool=name, shard=shard, partitions=pool.partitions, replica=replica)
            for name, pool in deployment.pools.items()
            for shard in range(pool.shards)
        ]
        quotas = Quotas(bus, deployment)
        consumers = [
            Consumer(bus, stream=tail.keys.outbox, group=keys.OUTBOX, name=replica,
                     handle=Outbox(bus, tail.keys, quotas).on_entries, count=OUTBOX_PER_READ)
            for tail in tails
        ]  # fmt: skip
        line = Line(Outlooks(bus, deployment.limits))
        canceller, origins = Canceller(bus, deployment), origin_pattern(settings.origins)
        sockets = Sockets(bus, Tails(tails), line, canceller, settings, origins)
        events = Events(bus, Tails(tails), line, settings.heartbeat_s)
        others: list[Loop] = [*consumers, webhooks.consumer, webhooks.upkeep, line.refreshing(), watching(deployment)]
        await serve(settings, stop, bus, sockets, events, tails, others)


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    bus: Bus,
    sockets: Sockets,
    events: Events,
    tails: list[Tail],
    others: list[Loop],
) -> None:
    loops, door = [*tails, *others], Door(bus.fault)
    app = build(settings, sockets, events, loops)
    async with HttpServer(door, settings.host, settings.port, websockets=True, drain_s=settings.drain_s) as http:
        if await unless_stopped(stop, bus.reach()) is None:
            return
        async with running(loops):
            if await unless_stopped(stop, *(tail.joined.wait() for tail in tails)) is not None:
                door.open(app)
                await http.start()
                announce_ready(settings, "notifier", http.url)
                await stop.wait()
            events.stopping.set()
            sockets.drain(DRAIN_SPREAD_MS)


def build(settings: Settings, sockets: Sockets, events: Events, loops: list[Loop]) -> ASGIApp:
    routes = [
        WebSocketRoute("/v1/ws", sockets),
        Route("/v1/tasks/{id}/events", events.endpoint, methods=["GET"]),
        *probe_routes(*map(passing, loops)),
    ]
    return CORSMiddleware(
        Starlette(routes=routes),
        allow_origin_regex=origin_pattern(settings.origins).pattern,
        allow_methods=["GET"],
        allow_headers=["*"],
    )
