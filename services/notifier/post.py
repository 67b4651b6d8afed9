"""One request to a receiver of webhooks, over a pool of connections that goes only where it may.

The address is checked where the connection is made, and the connection is made to the checked address: whatever a name server
says between a look and a connection changes nothing. The server's name goes on being what TLS and the header Host tell. No
redirect is followed, no proxy of the environment asked, and an answer's body is read only as far as keeping the connection
is worth it.
"""

import asyncio
import logging
import math
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any

import httpcore
from msgspec import Struct

from shared.clock import now_ms
from shared.errors import HeadraceError
from shared.urls import Address, may_connect

log = logging.getLogger(__name__)

TIMEOUT_S = 15.0
"""Of a whole request, from the name to the last byte. The specification asks receivers to answer within 15 to 30 s."""
CONNECTING = {"timeout": {"connect": 4.0}}
"""Seconds for one address: another one is tried well before the whole time is over."""
ADDRESSES = 3
"""Of a name, that are tried."""
READ_BYTES = 16 * 1024
RESOLVERS = 128
"""Threads that wait for name servers, apart from those of the process: a slow one must not keep Redis from being found. A thread is
held for longer than its request: several for each of receivers.TENANT_SLOTS, so that one tenant's dead names leave some over."""
LONGEST_WAIT_S = 24 * 3600.0
KEPT_S, MOST_KEPT = 30.0, 128
"""Unused connections, of all receivers together: a tenant may name thousands of servers that each answer at once."""


class Forbidden(HeadraceError):
    """The place is not public, and no network of the configuration holds it."""


class Unanswered(HeadraceError):
    """No connection, no TLS, or no answer in time."""


class Answer(Struct, frozen=True):
    status: int
    wait_s: float = 0.0
    """Retry-After."""


class Post:
    def __init__(self, allowed: Callable[[], list[str]]) -> None:
        """`allowed`: networks that may be sent to though they are not public, asked for with each connection."""
        self._resolvers = ThreadPoolExecutor(RESOLVERS, "resolver")
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=None,
            max_keepalive_connections=MOST_KEPT,
            keepalive_expiry=KEPT_S,
            network_backend=Guarded(self._resolvers, allowed),
        )

    async def close(self) -> None:
        await self._pool.aclose()
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def send(self, url: str, headers: Mapping[str, str], body: bytes, *, timeout_s: float = TIMEOUT_S) -> Answer:
        """Raises: Forbidden, Unanswered."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._send(url, headers, body)
        except TimeoutError:
            raise Unanswered(f"no answer within {timeout_s:g} s") from None
        except (httpcore.NetworkError, httpcore.TimeoutException, ssl.SSLError) as error:
            raise Unanswered(f"no connection: {error}") from None
        except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            raise Unanswered(f"the answer is no HTTP: {error}") from None

    async def _send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        sent = [*headers.items(), ("content-type", "application/json"), ("user-agent", "headrace")]
        async with self._pool.stream("POST", url, headers=sent, content=body, extensions=CONNECTING) as response:
            said = {name.lower(): value for name, value in response.headers}  # httpcore leaves names as they were sent
            answer = Answer(response.status, _wait_s(said.get(b"retry-after", b"").decode("latin-1")))
            read = 0
            async for piece in response.aiter_stream():
                read += len(piece)
                if read > READ_BYTES:
                    break
            return answer


class Guarded(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked."""

    def __init__(self, resolvers: ThreadPoolExecutor, allowed: Callable[[], list[str]]) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._resolvers, self._allowed = resolvers, allowed

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        found = await self._resolve(host, port)
        allowed = self._allowed()
        addresses = [address for address in found if may_connect(address, allowed)][:ADDRESSES]
        if not addresses:
            log.warning("no webhook goes to %s, which is %s", host, ", ".join(map(str, found)))
            raise Forbidden("the server has no public address, and is in no network of webhooks.allow_private")
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(str(addresses[-1]), port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise Forbidden("a webhook goes to no socket of this machine")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)

    async def _resolve(self, host: str, port: int) -> list[Address]:
        def ask() -> list[Any]:
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)

        try:
            found = await asyncio.get_running_loop().run_in_executor(self._resolvers, ask)
        except (OSError, UnicodeError):
            raise httpcore.ConnectError("the server's name leads nowhere") from None
        return list(dict.fromkeys(ip_address(where[0]) for *_, where in found))


def _wait_s(said: str) -> float:
    """Retry-After: seconds, or a date; nonsense is nothing."""
    try:
        wait_s = float(said) if said else 0.0
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(said).timestamp() - now_ms() / 1000
        except (ValueError, OverflowError):
            return 0.0
    return min(max(wait_s, 0.0), LONGEST_WAIT_S) if math.isfinite(wait_s) else 0.0
