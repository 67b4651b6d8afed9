"""Carries the tasks of a file to the server and their ends back: two requests a task, over kept-alive connections.

One request submits, the next waits for the end and brings the result. The WebSocket would spare the waiting one, but tells ends,
not tasks: the result of a task that was not streamed comes whole, that of a streamed one in pieces, and the rest of what is to be
written (times, usage, attempts) not at all, so each would be fetched all the same; and it forgets what a pause outlasts, where
the answer to a request is the truth of that moment. The requests go by aiohttp: of the time that httpx takes for one, nine parts
in ten are saved, and this process is what bounds a file of short tasks (docs/performance.md).
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from msgspec import Raw, Struct

from services.cli.doors import api_key, is_loopback
from services.cli.failure import Failure
from services.cli.requests import FULL_S, MEMORY_FULL, WAIT_S, Asked, Refused, advised_s
from shared.clock import monotonic_s
from shared.errors import UNDECODABLE
from shared.lifecycle import State
from shared.messages import NULL, elsewhere, is_json_elsewhere

PATIENCE_S = 600.0
"""How long a server that answers nothing is waited for: a run over night outlasts a restart, and ends when nobody comes back."""
STRIKES = 5
"""Times that a request may break while others are answered: then it is the request, and not the server."""
CONNECT_S = 10.0
SILENCE_S = WAIT_S + 30.0
"""Of an answer: longer than the server lets a request wait."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
NOT_ALLOWED, NO_ROUTE = (401, 403), (404, 405)

Tell = Callable[[str], None]


class Glance(Struct):
    """What decides how to go on with a task; the rest is passed on as it came."""

    id: str
    status: State
    created_at_ms: int = 0
    """0: of the answer to a submission, which is not yet the whole task."""
    result: Raw = NULL


class Told(Struct):
    error: dict[str, Any]


_glance = msgspec.json.Decoder(Glance)
_told = msgspec.json.Decoder(Told)


class Answer(Struct, frozen=True):
    status: int
    content: bytes
    retry_after_s: float


@asynccontextmanager
async def open_session(url: str, connections: int) -> AsyncIterator[aiohttp.ClientSession]:
    """With the API key of HEADRACE_KEY, if there is one."""
    key = api_key()
    async with aiohttp.ClientSession(
        headers={"authorization": f"Bearer {key}"} if key else {},
        connector=aiohttp.TCPConnector(limit=connections),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
        trust_env=not is_loopback(url),
    ) as session:
        yield session


class Courier:
    def __init__(
        self, session: aiohttp.ClientSession, url: str, tell: Tell, *, wait: bool, patience_s: float = PATIENCE_S
    ) -> None:
        """`tell` is given what everything waits for, and "" when it goes on."""
        self._session, self._url, self._tell, self._wait = session, url.rstrip("/"), tell, wait
        self._patience_s = patience_s
        self._answers = 0
        self._heard_at_s = monotonic_s()
        self._waiting = 0

    async def carry(self, asked: Asked) -> tuple[State, bytes]:
        """The task as GET /v1/tasks/ID tells it after its end (as accepted, if not to wait), in one line of JSON.

        Raises: Refused, Failure.
        """
        headers = {"content-type": "application/json"} | ({"idempotency-key": asked.key} if asked.key else {})
        seen, content = self._read(await self._ask("POST", "/v1/tasks", data=asked.payload, headers=headers))
        path = f"/v1/tasks/{seen.id}?wait={WAIT_S}"
        while self._wait and not (seen.status.terminal and seen.created_at_ms):
            seen, content = self._read(await self._ask("GET", path))
        if is_json_elsewhere(seen.id, seen.result):
            whole = await self._ask("GET", elsewhere(seen.id, 0, "").url)
            content = content.replace(bytes(seen.result), whole, 1)
        return seen.status, in_one_line(content)

    def _read(self, content: bytes) -> tuple[Glance, bytes]:
        try:
            seen = _glance.decode(content)
        except UNDECODABLE:
            raise self._stranger("does not answer as Headrace does") from None
        return seen, content

    def _stranger(self, why: str) -> Failure:
        return Failure(f"{self._url} {why}: is it Headrace's HTTP address?")

    async def _ask(self, method: str, path: str, **more: Any) -> bytes:
        """Again and again, over full backlogs and outages. Raises: Refused, Failure."""
        pause_s, strikes, answers = FIRST_PAUSE_S, 0, self._answers
        while True:
            try:
                answer = await self._answer(method, path, **more)
            except (aiohttp.ClientError, TimeoutError) as error:
                why, told_s = f"away ({type(error).__name__})", 0.0
            else:
                if _is_full(answer):
                    await self._full(answer)
                    continue
                if answer.status < 500:
                    self._on_answer()
                    return self._taken(answer)
                why, told_s = f"out of order ({_words(answer)})", answer.retry_after_s
            strikes += self._answers > answers
            answers = self._answers
            self._check_patience(why, strikes)
            await self._pause(f"{self._url} is {why}; trying again", told_s + random.uniform(pause_s / 2, pause_s))
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    async def _answer(self, method: str, path: str, **more: Any) -> Answer:
        async with self._session.request(method, self._url + path, allow_redirects=False, **more) as response:
            return Answer(response.status, await response.read(), advised_s(response.headers, 0.0))

    def _taken(self, answer: Answer) -> bytes:
        if answer.status < 300:
            return answer.content
        error = _error_of(answer)
        if answer.status in NOT_ALLOWED:  # and so would be every other line
            raise Failure(f"refused: {error['message']}")
        if answer.status < 400 or (answer.status in NO_ROUTE and "type" not in error):
            raise self._stranger(f"answers {answer.status} where tasks are")
        raise Refused(**error | {"status": answer.status})

    # -- waiting

    async def _full(self, answer: Answer) -> None:
        """Each task waits for itself: one that is too large, or too late, must not hold up those that would be taken."""
        self._heard_at_s = monotonic_s()
        told_s = answer.retry_after_s or FULL_S
        await self._pause(f"waits as the server asks ({_words(answer)})", told_s * random.uniform(1.0, 1.1))

    async def _pause(self, why: str, pause_s: float) -> None:
        self._waiting += 1
        self._tell(why)
        try:
            await asyncio.sleep(pause_s)
        finally:
            self._waiting -= 1

    def _on_answer(self) -> None:
        self._answers += 1
        self._heard_at_s = monotonic_s()
        if not self._waiting:
            self._tell("")

    def _check_patience(self, why: str, strikes: int) -> None:
        """Raises: Refused, Failure."""
        if strikes >= STRIKES:
            raise Refused(f"given up after {strikes} tries that broke while others were answered: the server is {why}")
        if monotonic_s() - self._heard_at_s > self._patience_s:
            raise Failure(f"{self._url} is {why}, for {self._patience_s:g} s")


def in_one_line(content: bytes) -> bytes:
    """An engine's answer may be spread over lines."""
    return msgspec.json.format(content, indent=-1) if b"\n" in content else content


def _is_full(answer: Answer) -> bool:
    return answer.status == 429 or (answer.status == 503 and _error_of(answer).get("code") == MEMORY_FULL)


def _words(answer: Answer) -> str:
    """The same for the same reason, so that it is told once."""
    error = _error_of(answer)
    return str(error.get("code") or error["message"])


def _error_of(answer: Answer) -> dict[str, Any]:
    """The server's own words, if it has any."""
    try:
        error = _told.decode(answer.content).error
    except UNDECODABLE:
        error = {}
    return error if isinstance(error.get("message"), str) else {"message": f"status {answer.status}"}
