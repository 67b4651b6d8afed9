"""The HTTP door: connections, and what their errors mean to a person."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from services.cli.failure import Failure
from shared.errors import UNDECODABLE

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANSWER_S = 600.0
"""Silence after which an answer is given up: a long queue before the first token is normal."""


def is_loopback(url: str) -> bool:
    """A proxy of the environment must not be asked for this machine."""
    return urlsplit(url).hostname in LOOPBACK


def api_key() -> str:
    """Of HEADRACE_KEY; empty: none. A secret, so no option: others see command lines."""
    return os.environ.get("HEADRACE_KEY") or ""  # noqa: TID251


@asynccontextmanager
async def http_door(url: str, *, connections: int = 10) -> AsyncIterator[httpx.AsyncClient]:
    """With the API key of HEADRACE_KEY, if there is one. Errors of the connection leave the block as Failure."""
    key = api_key()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    timeout = httpx.Timeout(ANSWER_S, connect=10.0)
    try:
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=timeout, limits=limits, trust_env=not is_loopback(url)
        ) as client:
            yield client
    except (httpx.ConnectError, httpx.ConnectTimeout):
        raise Failure(
            f"nothing answers at {url}. Start it with `headrace up`, or name the address with --url."
        ) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise Failure(f"--url {url} is not an address like http://127.0.0.1:8080: {error}", code=2) from None
    except httpx.HTTPError as error:
        raise Failure(f"the connection to {url} broke: {str(error) or type(error).__name__}") from None


async def knock(client: httpx.AsyncClient) -> None:
    """That nobody is there is told at once, and not after the patience that outlasts a restart. Raises: Failure."""
    read_json(await client.get("/v1/models"))


def complaint(response: httpx.Response) -> str:
    """Why the server refused: its own words if it has any."""
    try:
        return str(msgspec.json.decode(response.content)["error"]["message"])
    except (*UNDECODABLE, LookupError, TypeError):
        return f"{response.status_code} {response.reason_phrase} from {response.url}"


def read_json(response: httpx.Response) -> Any:
    """Raises: Failure if the server refused."""
    if response.is_error:
        raise Failure(complaint(response))
    try:
        return msgspec.json.decode(response.content)
    except UNDECODABLE:
        raise Failure(f"{response.url} does not answer JSON: is it Headrace's HTTP address?") from None
