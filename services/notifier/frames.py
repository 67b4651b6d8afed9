"""The wire protocol `headrace.v1` (docs/websocket.md): a frame is a JSON array of messages, each an object with `t`."""

from enum import IntEnum
from typing import Any, get_args

import msgspec
from msgspec import Raw, Struct

from shared.errors import ErrorBody
from shared.messages import NULL
from shared.place import Outlook

SUBPROTOCOL = "headrace.v1"
VERSION = 1
MAX_MESSAGES = 128
MAX_FRAME_BYTES = 64 * 1024
"""A frame is closed when it reaches one of the two; a single larger message is a frame of its own."""
MAX_INBOUND_BYTES = 64 * 1024
"""A page that comes back names the cursor of each task of its session: 90 bytes each."""
MAX_SUBSCRIPTIONS = 128
MAX_BAD_MESSAGES = 20
MAX_CANCELS = 128
"""Under way at once, of a connection: while Redis is away they wait here."""


class Close(IntEnum):
    """Below 4500 a client reconnects with its cursors, from there on it stops."""

    INTERNAL = 4000
    DRAIN = 4001
    SLOW = 4002
    NO_PONG = 4003
    BAD_MESSAGE = 4500
    VERSION = 4504
    NO_HELLO = 4505

    @property
    def reconnect(self) -> bool:
        return self < 4500


class Inbound(Struct, frozen=True, tag_field="t"):
    pass


class Hello(Inbound, frozen=True, tag="hello"):
    v: int = VERSION


class Sub(Inbound, frozen=True, tag="sub"):
    id: int
    task: str = ""
    session: str = ""
    after: str | dict[str, str] = "0"
    """For a task: its cursor. For a session: `0` (its newest tasks, then what comes), `now` (what runs and comes), or an
    object with the cursor of each task, `end` for those whose end was seen."""
    form: str = "text"
    """`text`: merged text; `chunks`: the engine's chunks as made."""


class Unsub(Inbound, frozen=True, tag="unsub"):
    id: int


class Cancel(Inbound, frozen=True, tag="cancel"):
    task: str


class Ping(Inbound, frozen=True, tag="ping"):
    ts: int | None = None


class Pong(Inbound, frozen=True, tag="pong"):
    ts: int | None = None


FORMS = ("text", "chunks")


class Outbound(Struct, tag_field="t", omit_defaults=True, kw_only=True):
    pass


class Welcome(Outbound, kw_only=True, tag="welcome"):
    conn: str
    v: int
    hb: float
    """Seconds: the server sends something at least this often."""
    now: int
    lim: dict[str, int]


class OfTask(Outbound, kw_only=True):
    """What belongs to a subscription; `task` is told when one subscription has many."""

    id: int
    task: str = ""
    c: str = ""
    """Cursor: keep the last one you applied."""


class Sync(OfTask, tag="sync", kw_only=True):
    status: str
    a: int
    n: int
    mode: str


class Data(OfTask, tag="d", kw_only=True):
    """The chunks f..n: their text of choice `i`, or with `form: chunks` the chunks themselves."""

    f: int
    n: int
    i: int = 0
    d: str | None = None
    chunks: list[Raw] | None = None


class Status(OfTask, tag="st", kw_only=True):
    status: str
    info: dict[str, Any]


def place_info(outlook: Outlook) -> dict[str, Any]:
    """What a Status of a waiting task tells. Left out: no place in line, an unknown start, no time that it waits for."""
    info: dict[str, Any] = {"why": outlook.why}
    if outlook.position:
        info["pos"] = outlook.position
    if outlook.eta_ms >= 0:
        info["eta_ms"] = outlook.eta_ms
    if outlook.due_ms:
        info["due_ms"] = outlook.due_ms
    return info


class Live(OfTask, tag="live", kw_only=True):
    pass


class Done(OfTask, tag="done", kw_only=True):
    n: int
    finish: str | None = None
    usage: Raw = NULL
    text: str | None = None
    """The whole text, when it did not come in pieces: it replaces whatever was there."""
    result: Raw = NULL
    """The same for `form: chunks`: the whole answer."""


class Fail(OfTask, tag="fail", kw_only=True):
    n: int
    status: str
    error: ErrorBody


class Reset(OfTask, tag="reset", kw_only=True):
    a: int
    n: int
    why: str


class Err(Outbound, kw_only=True, tag="err"):
    id: int | None = None
    """Of the subscription that was refused."""
    task: str = ""
    """That could not be cancelled."""
    code: str
    msg: str


class PingOut(Outbound, kw_only=True, tag="ping"):
    ts: int


class PongOut(Outbound, kw_only=True, tag="pong"):
    ts: int | None = None


class Bye(Outbound, kw_only=True, tag="bye"):
    code: int
    reconnect: bool
    after_ms: int = 0


Message = Hello | Sub | Unsub | Cancel | Ping | Pong
_inbound: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
_frame = msgspec.json.Decoder(list[Raw])
_kind = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.Encoder().encode
KNOWN = {kind.__struct_config__.tag for kind in get_args(Message)}


def decode_frame(data: str | bytes) -> list[Raw]:
    """Raises: msgspec.DecodeError."""
    return _frame.decode(data)


def decode_message(data: Raw) -> Message | None:
    """None for a message of a kind we do not know, which is to be ignored. Raises: msgspec.DecodeError."""
    tag = msgspec.json.decode(_kind.decode(data).get("t", NULL))
    if isinstance(tag, str) and tag not in KNOWN:
        return None
    return _inbound.decode(data)


def encode_frames(messages: list[Outbound]) -> list[bytes]:
    """As many frames as the limits ask for."""
    frames: list[bytes] = []
    current: list[bytes] = []
    size = 0
    for message in messages:
        data = _encode(message)
        if current and (len(current) >= MAX_MESSAGES or size + len(data) > MAX_FRAME_BYTES):
            frames.append(b"[%b]" % b",".join(current))
            current, size = [], 0
        current.append(data)
        size += len(data)
    if current:
        frames.append(b"[%b]" % b",".join(current))
    return frames
