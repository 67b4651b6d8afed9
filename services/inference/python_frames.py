"""What passes between the python engine and its processes: MessagePack, each message behind its length (8 bytes, big-endian)."""

import asyncio
import mimetypes
import re
import struct

import msgspec
from msgspec import Struct

LENGTH = struct.Struct(">Q")
RESULT_BYTES = 256 * 1024 * 1024
"""Most that a process may say at once, so the results of a batch together. The engine holds it in memory: without a bound one
callable that returns everything it has would take the worker with it."""
UNKNOWN_TYPE = "application/octet-stream"
CONTENT_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(;[ -~]*)?", re.ASCII)
"""What a callable is given as a content type, so that it may hand it on, and what it may answer with."""


class File(Struct, frozen=True, array_like=True):
    """What a callable is given for a file."""

    filename: str
    content_type: str
    data: bytes

    def __repr__(self) -> str:
        """Without the data: it may be printed, or stand in the words of an error."""
        return f"File({self.filename!r}, {self.content_type!r}, {len(self.data)} bytes)"


def file(filename: str, content_type: str, data: bytes) -> File:
    """`content_type`: what is said of it; what can be none, and nothing: as the name says."""
    said = (content_type, mimetypes.guess_type(filename, strict=False)[0] or "")
    return File(filename, next(filter(CONTENT_TYPE.fullmatch, said), UNKNOWN_TYPE), data)


class Body(Struct, frozen=True, array_like=True):
    data: bytes
    content_type: str = ""
    """Of a form; empty: JSON."""
    files: dict[str, File] = {}
    """By the ids under which the JSON names them."""

    @property
    def size(self) -> int:
        """Bytes, with those of its files."""
        return len(self.data) + sum(len(file.data) for file in self.files.values())


class Work(Struct, frozen=True, array_like=True, tag="work"):
    """Run the callable: on the one body, or on the batch of them."""

    id: int
    bodies: list[Body]


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
    filename: str = ""
    """To be kept as a file of this name, by the engine; empty: it is the answer itself."""


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


async def read_frame(reader: asyncio.StreamReader, limit_bytes: int = 2 * RESULT_BYTES) -> bytes | None:
    """The next message, encoded; None: the other side has ended, or says what is no frame."""
    try:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        return await reader.readexactly(length) if length <= limit_bytes else None
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
