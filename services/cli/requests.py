"""Requests that outlast full backlogs and restarts, and tasks as `headrace submit` shapes, sends and awaits them."""

import asyncio
import random
import secrets
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
from msgspec import Raw, Struct

from services.cli.doors import complaint, read_json
from services.cli.failure import Failure
from services.cli.view import View, has_ended
from shared.clock import monotonic_s
from shared.request import CHAT, COMPLETIONS

WAIT_S = 30
"""Of one long poll; the server allows 60."""
LOOK_S = 1.0
"""Of one while somebody watches the task's place in line."""
PATIENCE_S = 30.0
"""How long a server that is away, for a restart, is waited for."""
FULL_S = 1.0
"""Pause at a full backlog that names none."""

SHAPES = {"messages": CHAT, "prompt": COMPLETIONS}
"""The field that tells a body of the OpenAI API, and its route."""


class Refused(Exception):
    """The task was not taken, or is not there any more."""

    def __init__(self, message: str, **more: Any) -> None:
        super().__init__(message)
        self.error = {"message": message, **more}


class Asked(Struct, frozen=True):
    payload: bytes
    key: str
    """For Idempotency-Key: it makes sending again harmless."""


def make_task(text: str, session: str) -> Asked:
    """`text`: the JSON of an envelope, a shorthand or an OpenAI body, whose values stay as they are. Raises: Refused."""
    try:
        data = msgspec.json.decode(text, type=dict[str, Raw])
    except msgspec.DecodeError as error:
        raise Refused(f"not a JSON object: {error}") from None
    if not data.keys() & {"body", "input_text"}:
        route = next((route for field, route in SHAPES.items() if field in data), None)
        if route is None:
            raise Refused(
                "neither an envelope (`body`), a shorthand (`input_text`) nor an OpenAI body (`messages`, `prompt`)"
            )
        data = {"route": _raw(route), "body": Raw(text.encode())}
    if session:
        data.setdefault("session", _raw(session))
    key = "" if "task_id" in data else f"cli-{secrets.token_hex(12)}"
    return Asked(msgspec.json.encode(data), key)


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
        return view


async def call(client: httpx.AsyncClient, method: str, path: str, **more: Any) -> View:
    """Again and again, over full backlogs and short outages. Raises: Refused, Failure."""
    give_up_at_s, pause_s = monotonic_s() + PATIENCE_S, 0.1
    while True:
        try:
            response = await client.request(method, path, **more)
        except httpx.TransportError as error:
            if monotonic_s() > give_up_at_s:
                raise Failure(f"{client.base_url} is away: {str(error) or type(error).__name__}") from None
        else:
            if response.status_code == 429:
                give_up_at_s = monotonic_s() + PATIENCE_S
                pause_s = float(response.headers.get("retry-after", FULL_S))
            elif response.status_code != 503 or monotonic_s() > give_up_at_s:
                return _taken(response)
        await asyncio.sleep(random.uniform(pause_s / 2, pause_s))
        pause_s = min(2.0, pause_s * 2)


def _taken(response: httpx.Response) -> View:
    if response.is_client_error:
        raise Refused(complaint(response), status=response.status_code)
    view: View = read_json(response)
    return view
