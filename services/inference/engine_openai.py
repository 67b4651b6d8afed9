"""Any server with an OpenAI API behind the port: vLLM's own, SGLang, Ollama, llama.cpp, a hosted one. Several may share a pool.

    run() -> the best upstream -> POST -> Reading -> chunks, answer
      ^          another one <------------'   if the first failed before anything was passed on

The body goes as it came, with the upstream's name of the model where that differs; what comes back is passed on as it was made,
the model's name included. An upstream does not go on behind what another call has answered, so a task whose worker was lost is
made anew.

Every wait has an end: to connect, for the first byte, between bytes, by lane; the whole has the lane's run_s. Closing a run closes
its connection, by which servers notice that nobody waits.

Rejected: httpx (eight times the CPU time of a call, and more with each further connection), the client of openai (it reads what it
should pass on, and tries again by itself).
"""

import asyncio
import contextlib
import io
import logging
import os
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from typing import TypeVar

import aiohttp
import msgspec
from msgspec import Raw
from yarl import URL

from services.inference.ending import RETRIED, failure
from services.inference.engine import Answer, Call, CannotResume, Capacity, Chunk
from services.inference.upstream_answer import Broken, Reading
from services.inference.upstreams import Upstream, best
from shared.clock import monotonic_s
from shared.engine_options import OpenaiOptions
from shared.errors import UNDECODABLE, ConfigError, InvalidRequest
from shared.forms import field, parts, with_field
from shared.lifecycle import Lane
from shared.routes import other_than_json

log = logging.getLogger(__name__)

TRIES = 2
"""Upstreams that one run asks. What two refuse waits, so that a request that breaks its upstream does not break all at once."""
LOOK_S = 0.25
"""While all are busy or rest, between two looks whether one has come back. One that gets room says so."""
KEPT_S = 4.0
"""Idle connections are kept so long: less than the 5 s after which servers such as uvicorn close them."""
_LANES = tuple(Lane)
_fields = msgspec.json.Decoder(dict[str, Raw])
Made = TypeVar("Made")


class OpenaiEngine:
    name = "openai"
    remote = True

    def __init__(
        self,
        *,
        model: str,
        options: OpenaiOptions,
        slots: int,
        result_bytes: int,
        adapters: Collection[str] = (),
        clock: Callable[[], float] = monotonic_s,
    ) -> None:
        """`slots`: most of all upstreams together; 0: the sum of theirs. `result_bytes`: limits.result_bytes.
        `adapters`: names of variants, which all upstreams know as they are.

        Raises: ConfigError.
        """
        self._adapters = adapters
        self._model, self._options, self._most, self._result_bytes = model, options, slots, result_bytes
        self._upstreams = [Upstream(index, upstream, clock=clock) for index, upstream in enumerate(options.upstreams)]
        self._session: aiohttp.ClientSession | None = None
        self._freed = asyncio.Event()
        """An upstream may have room again."""
        self._waiting = self._steps = 0

    # -- life

    async def start(self) -> None:
        """No upstream is asked: one that is away comes back. Raises: ConfigError."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_S, ssl=_trusted(self._options.ca_file)),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"accept": "*/*", "accept-encoding": "identity", "user-agent": "headrace"},
        )

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def health(self) -> None:
        """It cannot die: what is wrong with upstreams, their breakers and that of the worker deal with."""

    def capacity(self) -> Capacity:
        slots = sum(upstream.slots for upstream in self._upstreams)
        running = sum(upstream.running for upstream in self._upstreams)
        return Capacity(
            slots=min(slots, self._most) if self._most else slots,
            running=running,
            waiting=self._waiting,
            steps=self._steps,
        )

    # -- one call

    async def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        if call.published:
            raise CannotResume("an upstream does not go on behind what another call has answered")
        upstream = await self._free()
        for others in reversed(range(TRIES)):
            async with contextlib.aclosing(self._ask(upstream, call)) as pieces:
                first = await anext(pieces)
                another = None
                if others and isinstance(first, Answer) and first.status in RETRIED:
                    another = best([other for other in self._upstreams if other is not upstream])
                if another is None:
                    yield first
                    async for piece in pieces:
                        yield piece
                    return
            upstream = another

    async def _free(self) -> Upstream:
        """The best one, once there is one."""
        self._waiting += 1
        try:
            while (upstream := best(self._upstreams)) is None:
                self._freed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):  # wait_for loses a cancellation of that moment
                        await self._freed.wait()
            return upstream
        finally:
            self._waiting -= 1

    async def _ask(self, upstream: Upstream, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        """The calls of an upstream are counted here, and its answers noted."""
        upstream.began(call.task_id)
        try:
            async with contextlib.aclosing(self._guarded(upstream, call)) as pieces:
                async for piece in pieces:
                    self._steps += 1
                    if isinstance(piece, Answer):
                        upstream.answered(call.task_id, piece.status, piece.retry_after_s, unreached=piece.unreached)
                        if piece.status in RETRIED:
                            log.warning("%s (%s): %d: %r", upstream.name, upstream.url, piece.status, piece.body[:500])
                    yield piece
        finally:
            upstream.left(call.task_id)
            self._freed.set()

    async def _guarded(self, upstream: Upstream, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        """The exchange, with each way it can go wrong as an answer."""
        times = self._options.patience(_LANES[call.priority])
        try:
            async with contextlib.aclosing(self._exchange(upstream, call, *times)) as pieces:
                async for piece in pieces:
                    yield piece
        except Broken as broken:
            yield broken.answer
        except aiohttp.ServerTimeoutError:
            yield _unreached(504, f"{upstream.name} could not be connected to within {times[0]:g} s (connect_s).")
        except aiohttp.ClientSSLError as error:
            yield _failed(502, f"{upstream.name} could not be connected to: {_why(error)}.")
        except aiohttp.ClientConnectorError as error:
            yield _unreached(502, f"{upstream.name} could not be connected to: {_why(error)}.")
        except aiohttp.ClientError as error:
            yield _failed(502, f"{upstream.name} has broken off: {type(error).__name__}.")

    async def _exchange(
        self, upstream: Upstream, call: Call, connect_s: float, first_byte_s: float, between_s: float
    ) -> AsyncGenerator[Chunk | Answer, None]:
        """Raises: Broken, aiohttp.ClientError."""
        assert self._session is not None
        asking = self._session.post(
            URL(upstream.address(call.route), encoded=True),
            data=io.BytesIO(self._body(upstream, call)),  # in pieces: a large one at once would hold up the loop
            headers=_headers(upstream, call),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_s),
        )
        late = f"{upstream.name} has not answered within {first_byte_s:g} s (first_byte_s)."
        silent = f"{upstream.name} has sent nothing for {between_s:g} s (between_bytes_s)."
        over_s = asyncio.get_running_loop().time() + first_byte_s
        response = await _in_time(asyncio.timeout_at(over_s), asking, late)
        try:
            if response.status == 401:
                raise Broken(_unauthorized(upstream), code="upstream_unauthorized")
            reading = Reading(upstream.name, call.route, response.status, response.headers, self._result_bytes)
            piece = await _in_time(asyncio.timeout_at(over_s), response.content.readany(), late)
            while piece:
                for chunk in reading.feed(piece):
                    yield chunk
                if reading.enough:
                    break
                piece = await _in_time(asyncio.timeout(between_s), response.content.readany(), silent)
            yield reading.end()
        finally:
            response.close()  # the connection too, unless all of the answer has come

    def _body(self, upstream: Upstream, call: Call) -> bytes:
        if upstream.model in ("", self._model):
            return call.body
        if other_than_json(call.content_type):
            with contextlib.suppress(InvalidRequest):
                found = parts(call.body, call.content_type)
                if field(call.body, found, "model") not in self._adapters:
                    return with_field(call.body, found, "model", upstream.model)
            return call.body
        return renamed(call.body, upstream.model, self._adapters)


def renamed(body: bytes, model: str, kept: Collection[str] = ()) -> bytes:
    """The JSON with another `model`, unless it names one of `kept`; every other value stays byte for byte."""
    try:
        fields = _fields.decode(body)
        if "model" not in fields or (kept and msgspec.json.decode(fields["model"]) in kept):
            return body
    except UNDECODABLE:
        return body  # the upstream says what is wrong with it
    return msgspec.json.encode({**fields, "model": model})


async def _in_time(patience: asyncio.Timeout, made: Awaitable[Made], late: str) -> Made:
    """Raises: Broken, with `late` for its message."""
    try:
        async with patience:
            return await made
    except aiohttp.ServerTimeoutError:
        raise  # it was the session that has lost patience
    except TimeoutError:
        raise Broken(late, status=504, code="upstream_timeout") from None


def _failed(status: int, message: str) -> Answer:
    return failure(message, status=status, code="upstream_timeout" if status == 504 else "upstream_error")


def _unreached(status: int, message: str) -> Answer:
    return msgspec.structs.replace(_failed(status, message), unreached=True)


def _headers(upstream: Upstream, call: Call) -> dict[str, str]:
    headers = {"content-type": call.content_type or "application/json", "x-request-id": call.task_id}
    if upstream.key is not None:
        headers["authorization"] = f"Bearer {upstream.key.value}"
    return headers


def _unauthorized(upstream: Upstream) -> str:
    if upstream.key is None:
        return f"{upstream.name} asks for an API key, and has no key_file in the configuration of its pool."
    return f"{upstream.name} refuses the API key that its key_file holds."


def _trusted(ca_file: str) -> ssl.SSLContext:
    """Raises: ConfigError."""
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # of ssl too
            raise ConfigError(
                f"openai.ca_file {ca_file} holds no certificates in PEM that can be read: {error}"
            ) from None
    return context


def _why(error: aiohttp.ClientConnectorError) -> str:
    """Without the address, which is in the message of the error: this one goes to clients."""
    cause = getattr(error, "certificate_error", None) or error.os_error
    if isinstance(cause, ssl.SSLError):
        return f"SSL: {cause.reason or type(cause).__name__}"
    return os.strerror(cause.errno) if cause.errno and cause.errno > 0 else type(cause).__name__
