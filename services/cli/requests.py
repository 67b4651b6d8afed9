"""Requests that outlast full backlogs and restarts, and tasks as `headrace submit` shapes, sends and awaits them.

A file's tasks, which are many, go by services/cli/courier.py.
"""

import asyncio
import random
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import msgspec
from msgspec import Raw, Struct

from services.cli.doors import complaint, read_json
from services.cli.failure import Failure
from services.cli.progress import Meter
from services.cli.view import View, has_ended, is_elsewhere
from shared.clock import monotonic_s
from shared.errors import UNDECODABLE
from shared.request import CHAT, COMPLETIONS

WAIT_S = 30
"""Of one long poll; the server allows 60."""
LOOK_S = 1.0
"""Of one while somebody watches the task's place in line."""
PATIENCE_S = 30.0
"""How long a server that is away, for a restart, is waited for."""
FULL_S = 1.0
"""Pause at a full backlog that names none."""
MEMORY_FULL = "memory_full"
"""Code of the 503 that says nothing against the task, as a 429 does: what is under way ends, results expire, and there is room."""

SHAPES = {"messages": CHAT, "prompt": COMPLETIONS}
"""The field that tells a body of the OpenAI API, and its route."""
OURS = {"body", "input_text", "template_id"}
"""Each tells an envelope or a shorthand."""
BATCH_LINE = {"custom_id", "method", "url", "body"}
"""The fields of a line as the Batch API of OpenAI takes it; `url` tells it."""


class Refused(Exception):
    """The task was not taken, or is not there any more."""

    def __init__(self, message: str, **more: Any) -> None:
        super().__init__(message)
        self.error = {"message": message, **more}


class Asked(Struct, frozen=True):
    payload: bytes
    key: str
    """For Idempotency-Key: it makes sending again harmless."""
    custom_id: str | None = None
    """By which the result is to be known again."""


def make_task(text: bytes, session: str = "", *, lane: str = "", key: str = "") -> Asked:
    """`text`: the JSON of an envelope, a shorthand, an OpenAI body or a line of an OpenAI batch; values stay as they are.

    `session`, `lane`: where it names none. `key`: of a task that has no id of its own (else a new one). Raises: Refused.
    """
    try:
        text.decode()  # values are passed on unread, so this is the only look at their bytes
        data = msgspec.json.decode(text, type=dict[str, Raw])
    except UnicodeDecodeError as error:
        raise Refused(f"not UTF-8: {error.reason} at byte {error.start + 1}") from None
    except UNDECODABLE as error:
        raise Refused(f"not a JSON object: {error}") from None
    custom_id = None
    if "url" in data:
        custom_id, data = _of_batch(data)
    elif not data.keys() & OURS:
        data = _wrapped(data, text)
    if session:
        data.setdefault("session", _raw(session))
    if lane and "priority" not in data:
        data.setdefault("lane", _raw(lane))
    return Asked(
        msgspec.json.encode(data), "" if "task_id" in data else key or f"cli-{secrets.token_hex(12)}", custom_id
    )


def _wrapped(data: dict[str, Raw], text: bytes) -> dict[str, Raw]:
    route = next((route for field, route in SHAPES.items() if field in data), None)
    if route is None:
        raise Refused(
            "neither an envelope (`body`), a shorthand (`input_text`, `template_id`), an OpenAI body (`messages`, `prompt`) "
            "nor a line of an OpenAI batch (`url`, `body`)"
        )
    return {"route": _raw(route), "body": Raw(text)}


def _of_batch(data: dict[str, Raw]) -> tuple[str | None, dict[str, Raw]]:
    """Its `custom_id`, and the envelope that it asks for."""
    if unknown := ", ".join(f"`{name}`" for name in data.keys() - BATCH_LINE):
        raise Refused(f"a line of an OpenAI batch has no {unknown}; known: custom_id, method, url, body")
    if "body" not in data:
        raise Refused("the line of an OpenAI batch has no `body`")
    try:
        custom_id = msgspec.json.decode(data["custom_id"], type=str) if "custom_id" in data else None
        method = msgspec.json.decode(data["method"], type=str) if "method" in data else "POST"
    except UNDECODABLE:
        raise Refused("`custom_id` and `method` are strings") from None
    if method != "POST":
        raise Refused(f"`method` is {method[:40]!r}; allowed: POST")
    return custom_id, {"route": data["url"], "body": data["body"]}


def _raw(value: str) -> Raw:
    return Raw(msgspec.json.encode(value))


class Sender:
    def __init__(self, client: httpx.AsyncClient, *, wait: bool, on_view: Callable[[View], None] | None = None) -> None:
        """`on_view` is given the task whenever it was looked at, for who watches how it waits."""
        self._client, self._wait, self._on_view = client, wait, on_view

    async def send(self, asked: Asked) -> View:
        """The task as it ended (or as accepted, if not to wait). Raises: Refused, Failure."""
        headers = {"content-type": "application/json"} | ({"idempotency-key": asked.key} if asked.key else {})
        view = await call(self._client, "POST", "/v1/tasks", content=asked.payload, headers=headers)
        path = f"/v1/tasks/{view['id']}"
        while self._wait and not (has_ended(view) and "created_at_ms" in view):
            wait_s = LOOK_S if self._on_view is not None and view["status"] == "pending" else WAIT_S
            view = await call(self._client, "GET", path, params={"wait": str(wait_s)})
            if self._on_view is not None:
                self._on_view(view)
        if is_elsewhere(view):
            view["result"] = await call(self._client, "GET", view["result"]["url"])
        return view


async def call(client: httpx.AsyncClient, method: str, path: str, **more: Any) -> View:
    """Again and again: over full backlogs and a full Redis, which is told, and over short outages. Raises: Refused, Failure."""
    give_up_at_s, pause_s, meter = monotonic_s() + PATIENCE_S, 0.1, Meter()
    while True:
        try:
            response = await client.request(method, path, **more)
        except httpx.TransportError as error:
            if monotonic_s() > give_up_at_s:
                raise Failure(f"{client.base_url} is away: {str(error) or type(error).__name__}") from None
        else:
            if full := _full(response):
                meter.tell(f"waits as the server asks ({full})")
                await asyncio.sleep(advised_s(response.headers, FULL_S))
                give_up_at_s, pause_s = monotonic_s() + PATIENCE_S, 0.1
            elif response.status_code != 503 or monotonic_s() > give_up_at_s:
                return _taken(response)
        await asyncio.sleep(random.uniform(pause_s / 2, pause_s))
        pause_s = min(2.0, pause_s * 2)


def _full(response: httpx.Response) -> str:
    """The code of an answer that only bids to wait; else empty."""
    if response.status_code not in (429, 503):
        return ""
    try:
        code = msgspec.json.decode(response.content)["error"]["code"]
    except (*UNDECODABLE, LookupError, TypeError):
        code = None
    if response.status_code == 429:
        return str(code or "429")
    return MEMORY_FULL if code == MEMORY_FULL else ""


def advised_s(headers: Mapping[str, str], otherwise_s: float) -> float:
    """How long the server asks to stay away. A date, which a proxy may send, is not worth a parser."""
    told = headers.get("retry-after", "")
    return float(told) if told.isdigit() else otherwise_s


def _taken(response: httpx.Response) -> View:
    if response.is_client_error:
        raise Refused(complaint(response), status=response.status_code)
    view: View = read_json(response)
    return view
