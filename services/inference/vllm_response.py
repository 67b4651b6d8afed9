"""What vLLM's application sends for one call, as chunks and an answer."""

import contextlib
from collections.abc import AsyncGenerator, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from services.inference.asgi import Exchange
from services.inference.engine import Answer, Call, Chunk
from services.inference.journal import Journal, journal
from services.inference.replay import Replay
from services.inference.sse import Frames, fault_in
from shared.routes import other_than_json


class Response:
    def __init__(self, app: ASGIApp, call: Call, headers: Mapping[str, str], replay: Replay | None) -> None:
        self._app, self._journal, self._frames = app, Journal(replay), Frames()
        if call.content_type:
            headers = {**headers, "content-type": call.content_type}
        self._exchange = Exchange(self._call_app, call.route, call.body, headers, self._take)
        self._whole: list[bytes] = []
        self._fault: Answer | None = None

    async def read(self) -> AsyncGenerator[Chunk | Answer, None]:
        async with contextlib.aclosing(self._exchange.read()) as pieces:
            async for chunks in pieces:
                for chunk in chunks:
                    yield chunk
        yield self._answer()

    async def _call_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        journal.set(self._journal)  # in the task of this call, and in those that vLLM makes from it
        await self._app(scope, receive, send)

    def _take(self, piece: bytes) -> list[Chunk]:
        """In the moment of sending, so that the tokens journalled by now are those of this piece."""
        if not self._exchange.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            self._whole.append(piece)
            return []
        chunks = []
        for frame in self._frames.feed(piece):
            if fault := fault_in(frame):
                self._fault = fault
            else:
                tokens, prompt = self._journal.take()
                chunks.append(Chunk(frame, tokens, prompt))
        return chunks

    def _answer(self) -> Answer:
        if self._fault is not None:
            return self._fault
        content_type = other_than_json(self._exchange.headers.get(b"content-type", b"").decode("latin-1"))
        if content_type.startswith("text/event-stream"):  # the chunks were the answer
            content_type = ""
        return Answer(status=int(self._exchange.status), body=b"".join(self._whole), content_type=content_type)
