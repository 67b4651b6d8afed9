"""Wiring of ingress, top to bottom."""

import asyncio
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.ingress import models, served, templates
from services.ingress.attendance import INTERVAL_S, Attendance
from services.ingress.auth import Auth
from services.ingress.batches import BatchDoor
from services.ingress.dead import Dead
from services.ingress.files import FileRoutes
from services.ingress.http import header
from services.ingress.openai import OpenAI
from services.ingress.responses import Responses
from services.ingress.settings import Settings
from services.ingress.tasks import Links, Tasks
from shared import config
from shared.bus.client import Bus
from shared.bus.tail import Tail, Tails
from shared.cancel import Canceller
from shared.config import Config
from shared.errors import ErrorBody
from shared.files import Files
from shared.ids import new_nonce
from shared.large import Large
from shared.lifespan import HttpServer, announce_ready, running, stop_requested, unless_stopped
from shared.messages import encode
from shared.objects import Objects
from shared.origins import origin_pattern
from shared.periodic import Periodic
from shared.probes import Door, Loop, passing, probe_routes
from shared.reload import watching
from shared.routes import RESPONSES, ROUTES
from shared.submit import Submitter


async def run(settings: Settings) -> None:
    stop = stop_requested()
    deployment = config.load(settings.config)
    replica = f"ingress-{new_nonce()}"
    async with Bus(settings.redis_url, name=replica, safety=deployment) as bus:
        tails = [
            Tail(bus, pool=name, shard=shard, partitions=pool.partitions, replica=replica)
            for name, pool in deployment.pools.items()
            for shard in range(pool.shards)
        ]
        attendance = Attendance(bus, Canceller(bus, deployment))
        attending = Periodic("the attendance", INTERVAL_S, attendance.renew)
        app = build(bus, deployment, settings, Tails(tails), attendance)
        await serve(settings, stop, bus, app, tails, [attending, watching(deployment)])


async def serve(
    settings: Settings, stop: asyncio.Event, bus: Bus, app: ASGIApp, tails: list[Tail], others: list[Loop]
) -> None:
    loops, door = [*tails, *others], Door(bus.fault)
    async with HttpServer(door, settings.host, settings.port, drain_s=settings.drain_s) as http:
        if await unless_stopped(stop, bus.reach()) is None:
            return
        async with running(loops):
            if await unless_stopped(stop, *(tail.joined.wait() for tail in tails)) is not None:
                door.open(app)
                await http.start()
                announce_ready(settings, "ingress", http.url)
                await stop.wait()
            await http.stop()


def build(bus: Bus, deployment: Config, settings: Settings, tails: Tails, attendance: Attendance) -> ASGIApp:
    objects = Objects(settings.objects_url) if settings.objects_url else None
    submitter, large = Submitter(bus, deployment, objects), Large(bus, objects, deployment.limits.inline_bytes)
    auth = Auth(deployment, settings.host)
    openai = OpenAI(bus, deployment, tails, submitter, large, attendance, auth)
    links = Links(settings.notifier_url)
    tasks = Tasks(bus, deployment, links, tails, submitter, large, auth)
    dead = Dead(bus, deployment, links, submitter, large, auth)
    kept = Files(bus, objects, deployment.limits.files_kept_s)
    files, batches = FileRoutes(deployment, kept, auth), BatchDoor(bus, deployment, kept, auth)
    responses = Responses(bus, deployment, tails, openai, large, Canceller(bus, deployment), auth)
    hot = {route: openai.endpoint(route) for route in ROUTES}
    hot |= {RESPONSES: responses.create, "/v1/tasks": tasks.submit}
    routes: list[BaseRoute] = [
        *(Route(path, app, methods=["POST"]) for path, app in hot.items()),
        Route("/v1/tasks", tasks.list, methods=["GET"]),
        Route("/v1/tasks/{id}", tasks.show, methods=["GET"]),
        Route("/v1/tasks/{id}/cancel", tasks.cancel, methods=["POST"]),
        Route("/v1/tasks/{id}/result", tasks.result, methods=["GET"]),
        Route("/v1/responses/{id}", responses.show, methods=["GET"]),
        Route("/v1/responses/{id}", responses.delete, methods=["DELETE"]),
        Route("/v1/responses/{id}/cancel", responses.cancel, methods=["POST"]),
        Route("/v1/responses/{id}/input_items", responses.input_items, methods=["GET"]),
        Route("/v1/dead", dead.list, methods=["GET"]),
        Route("/v1/dead/requeue", dead.requeue_many, methods=["POST"]),
        Route("/v1/dead/drop", dead.drop_many, methods=["POST"]),
        Route("/v1/dead/{entry}", dead.show, methods=["GET"]),
        Route("/v1/dead/{entry}", dead.drop, methods=["DELETE"]),
        Route("/v1/dead/{entry}/requeue", dead.requeue, methods=["POST"]),
        Route("/v1/files", files.create, methods=["POST"]),
        Route("/v1/files", files.list, methods=["GET"]),
        Route("/v1/files/{id}", files.show, methods=["GET"]),
        Route("/v1/files/{id}", files.delete, methods=["DELETE"]),
        Route("/v1/files/{id}/content", files.content, methods=["GET"]),
        Route("/v1/batches", batches.create, methods=["POST"]),
        Route("/v1/batches", batches.list, methods=["GET"]),
        Route("/v1/batches/{id}", batches.show, methods=["GET"]),
        Route("/v1/batches/{id}/cancel", batches.cancel, methods=["POST"]),
        Route("/v1/models", models.listing(deployment, auth), methods=["GET"]),
        Route("/v1/models/{name:path}", models.showing(deployment, auth), methods=["GET"]),
        Route("/v1/templates", templates.listing(deployment, auth), methods=["GET"]),
        *probe_routes(*map(passing, tails)),
    ]
    app = Starlette(routes=routes, exception_handlers={404: not_found, 405: not_found})
    browsers = CORSMiddleware(
        app,
        allow_origin_regex=origin_pattern(settings.origins).pattern,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=[f"x-headrace-{name}" for name in served.NAMES],
    )
    return ShortCut(hot, browsers)


class ShortCut:
    """Takes programs straight to the hot routes; web pages, and everything else, go through Starlette and its CORS rules.

    Four layers of middleware cost a sixth of a request.
    """

    def __init__(self, hot: Mapping[str, ASGIApp], app: ASGIApp) -> None:
        self._hot, self._app = hot, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST" and not header(scope, b"origin"):
            app = self._hot.get(scope["path"], app)
        await app(scope, receive, send)


async def not_found(request: Request, error: Exception) -> Response:
    """404 and 405 in the shape that clients of the OpenAI API read."""
    status = getattr(error, "status_code", 404)
    message = f"{request.method} {request.url.path} is not served here; see README.md for the routes."
    body = ErrorBody(message=message, type="invalid_request_error", code="unknown_route")
    return Response(encode({"error": body}), status_code=status, media_type="application/json")
