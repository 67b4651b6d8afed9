"""Takes a Server-Sent Events body apart."""

import re

import msgspec

from services.inference.engine import Answer
from shared.errors import UNDECODABLE

DONE = b"[DONE]"
FAULT = re.compile(rb'\s*\{\s*"(?:error"\s*:|type"\s*:\s*"error")')
"""How the routes begin the payload of a frame that tells of a failure."""


class Frames:
    """Collects pieces of a body, cut anywhere, into the payloads of whole `data:` frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        *whole, self._rest = (self._rest + piece).split(b"\n\n")
        return [payload for frame in whole if (payload := _payload(frame)) and payload != DONE]


def _payload(frame: bytes) -> bytes:
    """Other fields are left out: an `event:` is repeated in its data by every route that sends one."""
    return b"\n".join(line[5:].lstrip(b" ") for line in frame.splitlines() if line.startswith(b"data:"))


def fault_in(payload: bytes) -> Answer | None:
    """The end that a frame tells of, as an error in the shape of a whole answer; None: it is a chunk like others."""
    return fault_of(payload) if FAULT.match(payload) else None


def fault_of(payload: bytes) -> Answer | None:
    """Of a frame that is known to tell of one; None: it does not, after all."""
    try:
        told = msgspec.json.decode(payload, type=dict)
    except UNDECODABLE:
        return None
    error = told.get("error") or {name: told.get(name) for name in ("message", "code", "param")}
    if not isinstance(error, dict):
        return None
    code = error.get("code")
    known = {"message": "The engine failed.", "type": "server_error"} | {
        k: v for k, v in error.items() if v is not None or k == "param"
    }
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return Answer(status=status, body=msgspec.json.encode({"error": known}))
