"""Lines of a file that comes in pieces, with their places; one that is too long is dropped as it comes."""

from collections.abc import AsyncGenerator, AsyncIterator

from msgspec import Struct


class Line(Struct, frozen=True):
    number: int
    """In its file, from 1; empty ones count, and are left out."""
    offset: int
    """Where it begins, bytes."""
    behind: int
    """Where the next one begins."""
    text: bytes | None
    """None: it is longer than the limit."""


async def lines(
    pieces: AsyncIterator[bytes], limit_bytes: int, *, offset: int = 0, number: int = 0
) -> AsyncGenerator[Line, None]:
    """`offset`, `number`: where the pieces begin, and how many lines are before them. Memory: a piece and a line."""
    begun, length = b"", 0
    async for piece in pieces:
        *whole, rest = piece.split(b"\n")
        for part in whole:
            number, length = number + 1, length + len(part)
            line = Line(number, offset, offset + length + 1, begun + part if length <= limit_bytes else None)
            if line.text is None or line.text.strip():
                yield line
            offset, begun, length = line.behind, b"", 0
        length += len(rest)
        begun = begun + rest if length <= limit_bytes else b""
    if length > limit_bytes or begun.strip():
        yield Line(number + 1, offset, offset + length, begun if length <= limit_bytes else None)
