"""Server-sent events of the engine's routes, written again from the chunks."""

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from shared.errors import UNDECODABLE, ErrorBody
from shared.events import data_of, kind_of
from shared.messages import encode
from shared.routes import RESPONSES, ROUTES

DONE = b"data: [DONE]\n\n"


class _Numbered(Struct):
    sequence_number: int = -1


_numbered = msgspec.json.Decoder(_Numbered)


def frames_of(route: str, chunks: Iterable[bytes], *, after: int = -1, whole: bool = False) -> bytes:
    """`after`: only events of a higher number. `whole`: these are all there are, and the last one comes in any case.

    An answer taken apart again has fewer events than the stream had: whoever was further gets the event that holds it whole.
    """
    chosen = list(chunks)
    if after >= 0:
        chosen = [c for i, c in enumerate(chosen) if number_of(c) > after or (whole and i == len(chosen) - 1)]
    if not ROUTES[route].named:
        return b"".join(b"%b\n\n" % data_of(chunk) for chunk in chosen)
    return b"".join(map(_named, chosen))


def _named(chunk: bytes) -> bytes:
    kind = kind_of(chunk)
    return b"event: %b\n%b\n\n" % (kind.encode(), data_of(chunk)) if kind else b"%b\n\n" % data_of(chunk)


def number_of(chunk: bytes) -> int:
    try:
        return _numbered.decode(chunk).sequence_number
    except UNDECODABLE:
        return -1


def error_frames(route: str, error: ErrorBody) -> bytes:
    """How a stream of the route tells that it has failed, with its end."""
    if route == RESPONSES:
        told = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        return b"event: error\ndata: %b\n\n" % encode(told)
    kind = ROUTES[route]
    named = b"event: error\n" if kind.named else b""
    body = {"type": "error", "error": error} if kind.typed_errors else {"error": error}
    return b"%bdata: %b\n\n%b" % (named, encode(body), DONE if kind.done else b"")


def typed(result: bytes) -> bytes:
    """An error, with its type beside it."""
    try:
        told = msgspec.json.decode(result, type=dict)
    except UNDECODABLE:
        return result
    return result if "type" in told else encode({"type": "error", **told})
