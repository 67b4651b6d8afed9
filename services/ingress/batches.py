"""The Batch API, as the `openai` client calls it. services/scheduler/batches does the work; here it is asked for and looked at."""

import re
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct
from starlette.types import Receive, Scope, Send

from services.ingress.auth import Auth, may_see
from services.ingress.http import Endpoint, header, query, read_body, respond
from services.ingress.tasks import page_limit
from shared.batch_view import view
from shared.batches import DAY_S, LONGEST_WINDOW_S, Asked, Batch, Batches, Status
from shared.bus.client import Bus
from shared.config import Config
from shared.errors import BatchNotFound, BatchOver, FileNotFound, InvalidRequest
from shared.files import Files
from shared.messages import NULL, encode
from shared.reading import read
from shared.request import check_name
from shared.routes import ROUTES
from shared.webhooks import check_webhook

BODY_BYTES = 64 * 1024
PURPOSE = "batch"
"""Of files that may be the input."""
WEBHOOK = b"x-headrace-webhook"
WINDOW = re.compile(r"([1-9]\d{0,3})([hd])")
HOUR_S = 3600
MOST_METADATA, LONGEST_NAME, LONGEST_VALUE = 16, 64, 512


class OutputExpiry(Struct, frozen=True, forbid_unknown_fields=True):
    anchor: Literal["created_at"]
    seconds: int


class Create(Struct, frozen=True, forbid_unknown_fields=True):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: OutputExpiry | None = None
    webhook: str = ""
    """Who is told of its end: an endpoint of the configuration, or a URL."""


_create = msgspec.json.Decoder(Create)


class BatchDoor:
    """Whoever has proved who it is sees its own tenant's batches, and no others."""

    def __init__(self, bus: Bus, config: Config, files: Files, auth: Auth) -> None:
        self._config, self._files, self._auth = config, files, auth
        self._batches = Batches(bus, config.limits.files_kept_s)
        self.create = Endpoint("/v1/batches", self._create)
        self.list = Endpoint("/v1/batches", self._list)
        self.show = Endpoint("/v1/batches/{id}", self._show)
        self.cancel = Endpoint("/v1/batches/{id}/cancel", self._cancel)

    async def _create(self, scope: Scope, receive: Receive, send: Send) -> None:
        payer = self._auth.payer(scope)
        said: Create = read(_create, await read_body(scope, receive, BODY_BYTES), Create)
        asked = asked_of(said, payer.tenant, payer.key, self._webhook(scope, payer.tenant, said))
        self._files.objects  # noqa: B018 - raises, where there is no store
        file = await self._files.record(said.input_file_id)
        if file is None or file.gone or not may_see(payer, file.tenant):
            raise FileNotFound(said.input_file_id, param="input_file_id")
        if file.purpose != PURPOSE:
            raise InvalidRequest(
                f"The purpose of the file {file.id} is {file.purpose!r}; upload it with the purpose {PURPOSE!r}.",
                param="input_file_id",
            )
        key = check_name("Idempotency-Key", header(scope, b"idempotency-key"))
        batch = await self._batches.make(asked, key=key, total=file.lines)
        await respond(send, 200, encode(view(batch)))

    async def _show(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, encode(view(await self._own(scope))))

    async def _cancel(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Also when it was cancelled before, or when all its items have ended and its files are being closed."""
        await self._own(scope)
        batch = await self._batches.cancel(scope["path_params"]["id"])
        if batch.status in (Status.COMPLETED, Status.FAILED, Status.EXPIRED):
            raise BatchOver(batch.id, batch.status)
        await respond(send, 200, encode(view(batch)))

    async def _list(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The newest first."""
        payer = self._auth.payer(scope)
        asked = query(scope, {"limit": "20", "after": ""})
        limit = page_limit(asked["limit"])
        found = await self._batches.newest(payer.tenant, asked["after"], limit + 1)
        views = [view(batch) for batch in found[:limit]]
        first, last = (views[0].id, views[-1].id) if views else (None, None)
        page: dict[str, Any] = {"object": "list", "data": views, "first_id": first, "last_id": last}
        await respond(send, 200, encode({**page, "has_more": len(found) > limit}))

    def _webhook(self, scope: Scope, tenant: str, said: Create) -> str:
        """As the body says it, or the header that all routes of the OpenAI API take. Raises: InvalidRequest."""
        policy, named, field = self._config.policy, header(scope, WEBHOOK), WEBHOOK.decode()
        if said.webhook and named not in ("", said.webhook):
            raise InvalidRequest(
                f"`webhook` is {said.webhook[:80]!r} and `{field}` is {named[:80]!r}: only one is told. Leave one of them out.",
                param="webhook",
            )
        return check_webhook(policy, tenant, said.webhook) or check_webhook(policy, tenant, named, field=field)

    async def _own(self, scope: Scope) -> Batch:
        """Raises: BatchNotFound, also for one of others."""
        payer, batch_id = self._auth.payer(scope), scope["path_params"]["id"]
        batch = await self._batches.read(batch_id)
        if not may_see(payer, batch.tenant):
            raise BatchNotFound(batch_id)
        return batch


def asked_of(said: Create, tenant: str, key: str, webhook: str) -> Asked:
    """Raises: InvalidRequest."""
    routes = [path for path, route in ROUTES.items() if route.json]
    if said.endpoint not in routes:
        raise InvalidRequest(f"`endpoint` is {said.endpoint[:80]!r}; allowed: {', '.join(routes)}", param="endpoint")
    return Asked(
        tenant=tenant,
        key=key,
        endpoint=said.endpoint,
        input_file_id=said.input_file_id,
        window=said.completion_window,
        window_s=window_s(said.completion_window),
        metadata=Raw(encode(checked(said.metadata))) if said.metadata is not None else NULL,
        output_kept_s=kept_s(said.output_expires_after),
        webhook=webhook,
    )


def window_s(said: str) -> int:
    """Raises: InvalidRequest."""
    found = WINDOW.fullmatch(said)
    seconds = int(found[1]) * (HOUR_S if found[2] == "h" else DAY_S) if found else 0
    if not 0 < seconds <= LONGEST_WINDOW_S:
        raise InvalidRequest(
            f"`completion_window` is {said[:40]!r}; allowed: whole hours or days, such as 24h or 3d, at most "
            f"{LONGEST_WINDOW_S // DAY_S}d",
            param="completion_window",
        )
    return seconds


def checked(metadata: dict[str, str]) -> dict[str, str]:
    """Raises: InvalidRequest."""
    if len(metadata) > MOST_METADATA:
        raise InvalidRequest(
            f"`metadata` has {len(metadata)} pairs; allowed: at most {MOST_METADATA}", param="metadata"
        )
    for name, value in metadata.items():
        if len(name) > LONGEST_NAME or len(value) > LONGEST_VALUE:
            raise InvalidRequest(
                f"`metadata` has {name[:40]!r} with {len(value)} characters; allowed: names of at most {LONGEST_NAME}, values "
                f"of at most {LONGEST_VALUE}",
                param="metadata",
            )
    return metadata


def kept_s(said: OutputExpiry | None) -> int:
    """Raises: InvalidRequest."""
    if said is None:
        return 0
    if not HOUR_S <= said.seconds <= LONGEST_WINDOW_S:
        raise InvalidRequest(
            f"`output_expires_after.seconds` is {said.seconds}; allowed: {HOUR_S} to {LONGEST_WINDOW_S}",
            param="output_expires_after.seconds",
        )
    return said.seconds
