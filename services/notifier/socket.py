"""One WebSocket, as a raw ASGI endpoint: Starlette's WebSocket class costs a quarter of the memory of a connection.

    CONNECTING -> GREETING (accepted, waits for hello) -> OPEN -> CLOSED

One task reads, one writes; whichever ends first ends both. Nothing is sent after a close.
"""

import asyncio
import logging
import random
import re
from enum import Enum
from functools import partial

from msgspec import Raw
from starlette.types import Receive, Scope, Send

from services.notifier import frames, metrics
from services.notifier.frames import Bye, Cancel, Close, Err, Hello, Ping, PingOut, Pong, PongOut, Sub, Unsub, Welcome
from services.notifier.line import Line
from services.notifier.outgoing import Outgoing, TooSlow
from services.notifier.settings import Settings
from services.notifier.subscriptions import Followed, SessionFeed, follow_task, refusal
from shared import request
from shared.bus.client import Bus
from shared.bus.tail import Tails
from shared.cancel import Canceller
from shared.clock import monotonic_s, now_ms
from shared.errors import UNDECODABLE, BusError, InvalidRequest, InvalidTaskId
from shared.ids import new_nonce, place_of

log = logging.getLogger(__name__)

STALLED_S = 30.0
"""A frame that the client's network does not take for so long is not going to be taken."""


class Phase(Enum):
    GREETING = "greeting"
    OPEN = "open"
    CLOSED = "closed"


class Closing(Exception):
    """The server ends the connection."""

    def __init__(self, code: Close, *, after_ms: int = 0) -> None:
        super().__init__(code.name)
        self.code, self.after_ms = code, after_ms


class Gone(Exception):
    """The client has ended the connection."""


class Sockets:
    """The WebSocket endpoint of a replica, and all its connections."""

    def __init__(
        self, bus: Bus, tails: Tails, line: Line, canceller: Canceller, settings: Settings, origins: re.Pattern[str]
    ) -> None:
        self.bus, self.tails, self.line, self.canceller, self.settings = bus, tails, line, canceller, settings
        self._origins = origins
        self._open: set[Socket] = set()
        self._spread_ms: int | None = None
        """Set once the replica drains."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"), None)
        if origin is not None and not self._origins.fullmatch(origin):
            log.info("refused a WebSocket from the page %s (HEADRACE_NOTIFIER_ORIGINS)", origin)
            await send({"type": "websocket.close", "code": 1008})
            return
        socket = Socket(self, scope, receive, send)
        self._open.add(socket)
        if self._spread_ms is not None:  # the port is shut a moment later than the drain begins
            self._send_away(socket, self._spread_ms)
        metrics.SOCKETS.inc()
        try:
            await socket.run()
        finally:
            self._open.discard(socket)
            metrics.SOCKETS.dec()

    def drain(self, spread_ms: int) -> None:
        """Ask every client to come back to another replica, spread over `spread_ms`."""
        self._spread_ms = spread_ms
        for socket in self._open:
            self._send_away(socket, spread_ms)

    def _send_away(self, socket: "Socket", spread_ms: int) -> None:
        socket.end(Closing(Close.DRAIN, after_ms=random.randint(0, spread_ms)))


class Socket:
    def __init__(self, door: Sockets, scope: Scope, receive: Receive, send: Send) -> None:
        self._bus, self._tails, self._line, self._settings = door.bus, door.tails, door.line, door.settings
        self._canceller = door.canceller
        self._scope, self._receive, self._send = scope, receive, send
        self._phase = Phase.GREETING
        self._followed: dict[int, Followed] = {}
        self._cancels: set[asyncio.Task[None]] = set()
        self._outgoing = Outgoing()
        self._heard_at_s = monotonic_s()
        self._bad_messages = 0
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, closing: Closing) -> None:
        if not self._end.done():
            self._end.set_exception(closing)

    async def run(self) -> None:
        if (await self._receive())["type"] != "websocket.connect":
            return
        offered = self._scope.get("subprotocols") or []
        chosen = frames.SUBPROTOCOL if frames.SUBPROTOCOL in offered else None
        await self._send({"type": "websocket.accept", "subprotocol": chosen})
        parts = [asyncio.create_task(part) for part in (self._read(), self._write(), self._watch())]
        try:
            await asyncio.wait([*parts, self._end], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for id in list(self._followed):
                self._drop(id)
            for part in parts:
                part.cancel()
            results = await asyncio.gather(*parts, return_exceptions=True)
            self._phase = Phase.CLOSED
        await self._close([self._end.exception() if self._end.done() else None, *results])
        self._end.cancel()
        await asyncio.gather(*self._cancels)  # a page that says cancel and goes is obeyed

    async def _close(self, results: list[BaseException | None]) -> None:
        faults = [fault for fault in results if isinstance(fault, Exception)]
        if any(isinstance(fault, Gone) for fault in faults):
            return
        closing = next((fault for fault in faults if isinstance(fault, Closing)), None)
        if closing is None:
            log.error("a WebSocket broke", exc_info=faults[0] if faults else None)
            closing = Closing(Close.INTERNAL)
        metrics.DISCONNECTS.labels(closing.code).inc()
        bye = Bye(code=closing.code, reconnect=closing.code.reconnect, after_ms=closing.after_ms)
        try:
            async with asyncio.timeout(1):
                await self._send({"type": "websocket.send", "text": frames.encode_frames([bye])[0].decode()})
                await self._send({"type": "websocket.close", "code": int(closing.code), "reason": closing.code.name})
        except (TimeoutError, RuntimeError, OSError) as error:
            log.debug("the client was gone before its bye: %s", error)

    # -- in

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                raise Gone
            self._heard_at_s = monotonic_s()
            data = message.get("text")
            if data is None or len(data) > frames.MAX_INBOUND_BYTES:
                raise Closing(Close.BAD_MESSAGE)
            try:
                parts = frames.decode_frame(data)
            except UNDECODABLE:
                raise Closing(Close.BAD_MESSAGE) from None
            for part in parts:
                self._on_part(part)

    def _on_part(self, part: Raw) -> None:
        try:
            message = frames.decode_message(part)
        except UNDECODABLE as error:
            self._complain(Err(code="bad_request", msg=str(error)))
            return
        if self._phase is Phase.GREETING and not isinstance(message, Hello):
            raise Closing(Close.NO_HELLO)
        match message:
            case Hello():
                self._on_hello(message)
            case Sub():
                self._on_sub(message)
            case Unsub():
                self._drop(message.id)
            case Cancel():
                self._on_cancel(message)
            case Ping():
                self._outgoing.push(PongOut(ts=message.ts))
            case Pong() | None:
                pass

    def _on_hello(self, hello: Hello) -> None:
        if hello.v != frames.VERSION:
            raise Closing(Close.VERSION)
        if self._phase is Phase.OPEN:
            self._complain(Err(code="bad_request", msg="hello comes once"))
            return
        self._phase = Phase.OPEN
        limits = {"subs": frames.MAX_SUBSCRIPTIONS, "message_bytes": frames.MAX_INBOUND_BYTES}
        self._outgoing.push(
            Welcome(conn=new_nonce(), v=frames.VERSION, hb=self._settings.heartbeat_s, now=now_ms(), lim=limits)
        )

    def _on_sub(self, sub: Sub) -> None:
        try:
            followed = self._follow(sub)
        except (InvalidRequest, InvalidTaskId) as error:
            self._complain(refusal(sub, error))
            return
        self._followed[sub.id] = followed
        followed.open()

    def _follow(self, sub: Sub) -> Followed:
        if sub.id in self._followed:
            raise InvalidRequest(
                f"The subscription {sub.id} exists; choose another `id`, or `unsub` first.", param="id"
            )
        if len(self._followed) >= frames.MAX_SUBSCRIPTIONS:
            raise InvalidRequest(f"A connection has at most {frames.MAX_SUBSCRIPTIONS} subscriptions.", param="id")
        if sub.form not in frames.FORMS:
            raise InvalidRequest(f"`form` is {sub.form[:40]!r}; allowed: {', '.join(frames.FORMS)}", param="form")
        if bool(sub.task) == bool(sub.session):
            raise InvalidRequest("Name either a `task` or a `session`.", param="task")
        if sub.session:
            request.check_name("session", sub.session)
            return SessionFeed(self._bus, self._tails, self._line, sub, self._outgoing.push)
        on_end = partial(self._drop_soon, sub.id)
        return follow_task(self._bus, self._tails, self._line, sub, self._outgoing.push, on_end=on_end)

    def _drop_soon(self, id: int, ended: Followed) -> None:
        """From inside a feed's own callback."""
        asyncio.get_running_loop().call_soon(self._drop_ended, id, ended)

    def _drop_ended(self, id: int, ended: Followed) -> None:
        if self._followed.get(id) is ended:  # the client may have given its number to another one meanwhile
            self._drop(id)

    def _drop(self, id: int) -> None:
        followed = self._followed.pop(id, None)
        if followed is not None:
            followed.close()

    def _on_cancel(self, cancel: Cancel) -> None:
        """Beside the reading: pongs must be heard while Redis is slow."""
        if len(self._cancels) >= frames.MAX_CANCELS:
            message = f"At most {frames.MAX_CANCELS} cancels may be under way; send this one again later."
            self._outgoing.push(Err(task=cancel.task, code="busy", msg=message))
            return
        try:
            if self._tails.of(place_of(cancel.task)) is None:
                raise InvalidTaskId(cancel.task)
        except InvalidTaskId as error:
            self._complain(Err(task=cancel.task, code="not_found", msg=str(error)))
            return
        task = asyncio.create_task(self._cancel(cancel.task))
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)

    async def _cancel(self, task_id: str) -> None:
        """Who follows the task is told by its end; no other answer comes, unless it could not be done."""
        try:
            await self._canceller.cancel(task_id)
        except BusError as error:
            log.warning("cannot cancel %s: %s", task_id, error)
            message = f"It is not known whether the task was cancelled ({error}). Send it again."
            self._outgoing.push(Err(task=task_id, code="unavailable", msg=message))

    def _complain(self, error: Err) -> None:
        self._bad_messages += 1
        if self._bad_messages > frames.MAX_BAD_MESSAGES:
            raise Closing(Close.BAD_MESSAGE)
        self._outgoing.push(error)

    # -- out

    async def _write(self) -> None:
        while True:
            try:
                messages = await self._outgoing.take()
            except TooSlow:
                raise Closing(Close.SLOW) from None
            for frame in frames.encode_frames(messages):
                try:
                    async with asyncio.timeout(STALLED_S):
                        await self._send({"type": "websocket.send", "text": frame.decode()})
                except TimeoutError:
                    raise Closing(Close.SLOW) from None
                metrics.FRAMES.inc()
                metrics.BYTES.inc(len(frame))
            for message in messages:
                metrics.MESSAGES.labels(type(message).__struct_config__.tag).inc()

    async def _watch(self) -> None:
        """The deadline for hello, then pings through silence, and the deadline for their answers."""
        await asyncio.sleep(self._settings.hello_s)
        if self._phase is Phase.GREETING:
            raise Closing(Close.NO_HELLO)
        asked_at_s = 0.0
        while True:
            await asyncio.sleep(self._settings.heartbeat_s * random.uniform(0.8, 1.0))
            if self._heard_at_s < asked_at_s:
                raise Closing(Close.NO_PONG)
            asked_at_s = monotonic_s()
            self._outgoing.push(PingOut(ts=now_ms()))
