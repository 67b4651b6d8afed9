"""What an upstream answers to one call, as chunks and an answer that hold what the port promises.

Nothing of it is trusted: it may be the page of a proxy, cut, endless, or no JSON. What is passed on is as it came, byte for byte;
what cannot be passed on becomes an error that says so. Memory is bounded: by `result_bytes` for a whole answer and for a frame of
a stream, and by STREAM_SHARE times that for the chunks of a stream, which the worker keeps.
"""

import email.utils
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from services.inference.ending import failure
from services.inference.engine import Answer, Chunk
from services.inference.sse import Frames, fault_of
from shared.clock import now_ms
from shared.errors import UNDECODABLE, ErrorBody
from shared.messages import encode
from shared.routes import ROUTES, Route, Shape, other_than_json

STREAM_SHARE = 16
"""A chunk of one token has about 60 times the bytes of its text. With the default limit: 64 MiB, some 200,000 tokens."""
ERROR_BYTES = 64 * 1024
"""Of an error's body that are read. No error says more; a page of a proxy may."""
MESSAGE_CHARS = 2000
LONGEST_RETRY_S = 3600.0
"""A task is not put off for longer, whatever the upstream asks for."""
STATUSES = {408: 504, 425: 503, **dict.fromkeys((520, 521, 522, 523, 530), 502), 524: 504, 529: 503}
"""Some call an overload or a lost server by numbers of their own; ours are those that are tried again."""
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
ENDS = {
    Shape.CHOICES: re.compile(rb'"(?:finish_reason|stop_reason)"\s*:\s*"[^"]'),
    Shape.RESPONSE: re.compile(rb'"type"\s*:\s*"response\.(?:completed|incomplete|failed|cancelled)"'),
    Shape.MESSAGE: re.compile(rb'"type"\s*:\s*"message_stop"'),
}
"""What tells in a frame that the answer is complete. A server whose model has died may end its stream as if all were well."""


class Broken(Exception):
    """What came is not the answer of an engine. `answer` says what it is instead."""

    def __init__(self, message: str, *, status: int = 502, code: str = "upstream_error") -> None:
        super().__init__(message)
        self.answer = failure(message, status=status, code=code)


class _Failure(Struct):
    error: ErrorBody


class _Frame(Struct):
    error: Raw | UnsetType = UNSET
    type: Any = None


_failure = msgspec.json.Decoder(_Failure)
_frame = msgspec.json.Decoder(_Frame)
_raw = msgspec.json.Decoder(Raw)


class Reading:
    """Of one response: `feed` what comes of its body, then `end`. Both raise Broken."""

    def __init__(self, who: str, route: str, status: int, headers: Mapping[str, str], result_bytes: int) -> None:
        """`who`: the upstream, as messages call it."""
        self._who, self._route, self._headers, self._limit = who, ROUTES.get(route), headers, result_bytes
        self._status = STATUSES.get(status, status)
        self._kind = _plain(headers.get("content-type", ""))
        self._type = self._kind.lower()
        self._streams = status < 300 and self._type.startswith("text/event-stream")
        self._whole, self._size = list[bytes](), 0
        self._frames, self._since_frame, self._tail, self._ended = Frames(), 0, b"", False
        self._end = _end(self._route)
        self._fault: Answer | None = None
        self.enough = False
        """What is still to come would change nothing."""
        self._check()

    def feed(self, piece: bytes) -> list[Chunk]:
        self._size += len(piece)
        if self._streams:
            return self._feed_frames(piece)
        self._whole.append(piece)
        if self._status < 400 and self._size > self._limit:
            raise self._too_large(self._limit)
        self.enough = self._size > ERROR_BYTES and self._status >= 400
        return []

    def end(self) -> Answer:
        body = b"".join(self._whole)
        if self._fault is not None:
            return self._fault
        if self._status >= 400:
            error = self._as_error(body, self._status)
            return Answer(status=self._status, body=error, retry_after_s=retry_after_s(self._headers))
        if not self._streams:
            return self._whole_answer(body)
        if self._end is not None and not (self._ended or b"[DONE]" in self._tail):
            raise Broken(f"{self._who} has ended its stream before the answer was complete.")
        return Answer(status=200, body=b"")

    # -- the parts

    def _check(self) -> None:
        """What the head alone tells."""
        if 300 <= self._status < 400:
            raise Broken(
                f"{self._who} answers {self._status}, a redirect, which is not followed: its url must name the place itself."
            )
        if self._headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise Broken(
                f"{self._who} answers in {_plain(self._headers['content-encoding'])}, which it was not asked to."
            )
        if self._status >= 400 or self._streams or not self._type.startswith("text/"):
            return
        if self._type.startswith("text/html") or not (self._route is not None and self._route.form):
            raise Broken(f"{self._who} answers {self._status} with {self._type.partition(';')[0]} instead of JSON.")

    def _feed_frames(self, piece: bytes) -> list[Chunk]:
        if self._size > STREAM_SHARE * self._limit:
            raise self._too_large(STREAM_SHARE * self._limit)
        # JSON has no line break but between its tokens, so what servers end their lines with can be made one.
        piece = piece.replace(b"\r", b"")
        frames = self._frames.feed(piece)
        self._tail = (self._tail + piece)[-32:]
        self._since_frame = 0 if b"\n\n" in piece else self._since_frame + len(piece)
        if self._since_frame > self._limit:
            raise self._too_large(self._limit)
        chunks = []
        for frame in frames:
            if fault := self._fault_in(frame):
                self._fault, self.enough = fault, True
                break
            self._ended = self._ended or (self._end is not None and self._end.search(frame) is not None)
            chunks.append(Chunk(frame))
        return chunks

    def _fault_in(self, frame: bytes) -> Answer | None:
        """The end that a frame tells of in place of a chunk."""
        try:
            frame.decode()  # the decoder passes over strings that are not UTF-8
            told = _frame.decode(frame)
        except UNDECODABLE as wrong:
            raise Broken(f"{self._who} has sent a frame that is no JSON object: {wrong}.") from None
        error = told.error
        if error is UNSET or bytes(error) == b"null":
            return fault_of(frame) if told.type == "error" else None
        code = _said(frame)[1]
        status = STATUSES.get(code, code) if isinstance(code, int) and 400 <= code < 600 else 500
        return Answer(status=status, body=self._as_error(b'{"error":' + bytes(error) + b"}", status))

    def _whole_answer(self, body: bytes) -> Answer:
        other = other_than_json(self._kind)
        if other and body:
            return Answer(status=self._status, body=body, content_type=other)
        try:
            body.decode()
            _raw.decode(body)
        except UNDECODABLE as wrong:
            raise Broken(f"{self._who} answers {self._status} with a body that is not JSON: {wrong}.") from None
        return Answer(status=self._status, body=body)

    def _as_error(self, body: bytes, status: int) -> bytes:
        """As it came, if an OpenAI client can read it; else with what it says."""
        try:
            body.decode()
            _failure.decode(body)
        except UNDECODABLE:
            said, code = _said(body)
            what = said or f"{self._who} answers {status} with {self._type.partition(';')[0] or 'nothing'}."
            kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
            error = ErrorBody(message=what[:MESSAGE_CHARS], type=kind, code=code or status)
            return encode({"error": error})
        return body

    def _too_large(self, limit: int) -> Broken:
        message = f"{self._who} has sent more than {limit} bytes (limits.result_bytes is {self._limit})."
        return Broken(message, status=507, code="result_too_large")


def _end(route: Route | None) -> re.Pattern[bytes] | None:
    """None: a stream of this route is over when it ends."""
    if route is None or (route.shape is Shape.CHOICES and not route.done):
        return None
    return ENDS.get(route.shape)


def _plain(header: str) -> str:
    """Its printable ASCII: headers may hold any bytes, and what is told of them goes into JSON and into a header of ours."""
    return "".join(char if " " <= char <= "~" else "?" for char in header)


def retry_after_s(headers: Mapping[str, str]) -> float:
    """What the headers ask to be left alone for; 0: they do not say, or nothing sensible."""
    said = headers.get("retry-after", "")
    try:
        wait_s = float(headers["retry-after-ms"]) / 1000 if "retry-after-ms" in headers else float(said)
    except ValueError:
        try:
            wait_s = email.utils.parsedate_to_datetime(said).timestamp() - now_ms() / 1000
        except (ValueError, OverflowError):
            return 0.0
    return min(LONGEST_RETRY_S, max(0.0, wait_s)) if math.isfinite(wait_s) else 0.0


def _said(body: bytes) -> tuple[str, str | int | None]:
    """Message and code of an error in any of the shapes that servers have, or nothing."""
    try:
        told: Any = msgspec.json.decode(body)
    except UNDECODABLE:
        return "", None
    if isinstance(told, list) and told:
        told = told[0]
    error = told.get("error", told) if isinstance(told, dict) else told
    if not isinstance(error, dict):
        return (error, None) if isinstance(error, str) else ("", None)
    message = error.get("message") or error.get("detail") or ""
    code = error.get("code")
    text = message if isinstance(message, str) else encode(message).decode()
    return text, code if isinstance(code, str | int) and not isinstance(code, bool) else None
