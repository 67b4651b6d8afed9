"""The lines of a file or a pipe, numbered from 1, in bounded memory: read piece by piece, ahead of nothing but one piece."""

import asyncio
import hashlib
import os
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msgspec import Struct

from services.cli.failure import Failure

PIECE_BYTES = 256 * 1024
"""Of one read: hundreds of short lines, so that the hop to a thread is nothing to each."""
LONGEST_BYTES = 16 * 1024 * 1024
"""Of a line: four times what a server takes as it comes. A longer one is skipped as it is read, and never held."""
BOM = b"\xef\xbb\xbf"


class Line(Struct, frozen=True):
    number: int
    content: bytes
    fault: str = ""
    """Why it could not be read."""


class Identity(Struct, frozen=True):
    """What tells that a file is the one of an earlier run. Not its name or time: a copy is the same, a changed byte is not."""

    digest: str
    lines: int
    """That are not empty."""
    last: int
    """Number of the last of them."""


class Cutter:
    """Pieces in, whole lines out, without the empty ones."""

    def __init__(self, longest_bytes: int = LONGEST_BYTES) -> None:
        self._longest, self._number = longest_bytes, 0
        self._begun, self._skipped = bytearray(), False

    def cut(self, piece: bytes) -> Iterator[Line]:
        """An empty piece is the end."""
        *ended, rest = piece.split(b"\n")
        for part in ended:
            yield from self._end(part)
        if piece:
            self._keep(rest)
        else:
            yield from self._end(b"")

    def _keep(self, part: bytes) -> None:
        if len(self._begun) + len(part) > self._longest:
            self._begun.clear()
            self._skipped = True
        elif not self._skipped:
            self._begun += part

    def _end(self, part: bytes) -> Iterator[Line]:
        self._keep(part)
        self._number += 1
        content = bytes(self._begun)
        if self._number == 1:
            content = content.removeprefix(BOM)
        if self._skipped:
            yield Line(self._number, b"", f"it is longer than {self._longest} bytes")
        elif content.strip():
            yield Line(self._number, content)
        self._begun.clear()
        self._skipped = False


class Source:
    """An open file of lines. `identity`: none for a pipe, which can be read only once."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name, self._descriptor = name, descriptor
        self.identity = self._identify() if stat.S_ISREG(os.fstat(descriptor).st_mode) else None

    def _identify(self) -> Identity:
        """Its place is kept: standard input may have been read by others before."""
        start = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        digest, cutter, lines, last = hashlib.blake2b(digest_size=16), Cutter(), 0, 0
        piece = b" "
        while piece:
            piece = os.read(self._descriptor, PIECE_BYTES)
            digest.update(piece)
            for line in cutter.cut(piece):
                lines, last = lines + 1, line.number
        os.lseek(self._descriptor, start, os.SEEK_SET)
        return Identity(digest.hexdigest(), lines, last)

    def is_same(self, path: Path) -> bool:
        """Under whatever name."""
        return path.exists() and os.path.samestat(path.stat(), os.fstat(self._descriptor))

    async def lines(self) -> AsyncIterator[Line]:
        """Raises: Failure if it cannot be read on, or is another than when it was opened."""
        digest, cutter = hashlib.blake2b(digest_size=16), Cutter()
        piece = b" "
        while piece:
            try:
                piece = await _beside(self._descriptor)
            except OSError as error:
                raise Failure(f"{self.name} cannot be read: {error.strerror}") from None
            digest.update(piece)
            for line in cutter.cut(piece):
                yield line
        if self.identity is not None and digest.hexdigest() != self.identity.digest:
            raise Failure(f"{self.name} has changed while it was read; put it back as it was when this run began")


@contextmanager
def open_source(name: str) -> Iterator[Source]:
    """`-` is standard input. Raises: Failure."""
    descriptor = _open(name)
    try:
        yield Source(name, descriptor)
    finally:
        os.close(descriptor)


def _open(name: str) -> int:
    try:
        descriptor = os.dup(0) if name == "-" else os.open(Path(name), os.O_RDONLY)
    except FileNotFoundError:
        raise Failure(
            f"there is no file {name!r}. Tasks come as a file, one a line, or - for standard input; "
            "the text of a single task is given with --text."
        ) from None
    except OSError as error:
        raise Failure(f"{name} cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Failure(f"{name} is a folder; name a file of tasks, one a line")
    return descriptor


async def _beside(descriptor: int) -> bytes:
    """The next piece, read by a thread of its own: a quiet pipe holds up nothing, not even the end of the process.

    asyncio's own threads are waited for at the end, so Ctrl-C would last until the pipe's other side speaks. Raises: OSError.
    """
    loop = asyncio.get_running_loop()
    read: asyncio.Future[bytes] = loop.create_future()

    def tell(piece: bytes | OSError) -> None:
        if read.done():
            return
        if isinstance(piece, OSError):
            read.set_exception(piece)
        else:
            read.set_result(piece)

    def work() -> None:
        try:
            piece: bytes | OSError = os.read(descriptor, PIECE_BYTES)
        except OSError as error:
            piece = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, piece)

    threading.Thread(target=work, name="lines", daemon=True).start()
    return await read
