"""What passes between the python engine and its processes: MessagePack, each message behind its length (8 bytes, big-endian)."""

import asyncio
import struct

import msgspec
from msgspec import Struct

LENGTH = struct.Struct(">Q")
RESULT_BYTES = 256 * 1024 * 1024
"""Most that a process may say at once, so the results of a batch together. The engine holds it in memory: without a bound one
callable that returns everything it has would take the worker with it."""


class Work(Struct, frozen=True, array_like=True, tag="work"):
    """Run the callable: on the one body, or on the batch of them."""

    id: int
    bodies: list[bytes]


class Cancel(Struct, frozen=True, array_like=True, tag="cancel"):
    """Nobody waits for it any more, or it has run out of time."""

    id: int


class Ready(Struct, frozen=True, array_like=True, tag="ready"):
    is_async: bool


class Unready(Struct, frozen=True, array_like=True, tag="unready"):
    why: str
    """A traceback."""


class Begun(Struct, frozen=True, array_like=True, tag="begun"):
    """The work was read. Should the process have ended without, it was none of the work's doing."""

    id: int


class Piece(Struct, frozen=True, array_like=True, tag="piece"):
    """One thing that a generator has made, as JSON."""

    id: int
    data: bytes


class Value(Struct, frozen=True, array_like=True, tag="value"):
    body: bytes
    """Empty: it was streamed."""
    content_type: str = ""
    """Empty: JSON."""


class Fault(Struct, frozen=True, array_like=True, tag="fault"):
    status: int
    message: str
    code: str = "callable_failed"


class Done(Struct, frozen=True, array_like=True, tag="done"):
    id: int
    results: list[Value | Fault]
    """One for each body."""


class Broken(Struct, frozen=True, array_like=True, tag="broken"):
    """The callable failed as a whole: which body of a batch is to blame cannot be told."""

    id: int
    fault: Fault


Order = Work | Cancel
Report = Ready | Unready | Begun | Piece | Done | Broken

orders = msgspec.msgpack.Decoder(Order)
reports = msgspec.msgpack.Decoder(Report)
_encode = msgspec.msgpack.Encoder().encode


def frame(message: Order | Report) -> bytes:
    data = _encode(message)
    return LENGTH.pack(len(data)) + data


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next message, encoded; None: the other side has ended, or says what is no frame."""
    try:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        return await reader.readexactly(length) if length <= 2 * RESULT_BYTES else None
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
