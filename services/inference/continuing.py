"""What a run does with chunks that earlier attempts have published: it goes on behind them, or makes all anew.

Made anew, an answer may still be the same: greedy, seeded and structured ones mostly are. So as long as the new chunks are the
published ones they are swallowed, and readers notice nothing; the first one that differs starts the answer over.
"""

import contextlib
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from services.inference.engine import Answer, Chunk
from shared.errors import UNDECODABLE

CREATED = re.compile(rb'"created(?:_at)?"\s*:\s*\d+')
"""The first one of a chunk is the time of the attempt; what an engine says of it stands before all that a model says."""


class Base(Struct, frozen=True):
    """The next chunk follows these: all that were published, or none."""

    chunks: Sequence[Chunk]


class _Named(Struct):
    id: str = ""


_named = msgspec.json.Decoder(_Named)

Piece = Chunk | Answer
Pieces = AsyncGenerator[Piece, None]


async def going_on(pieces: Pieces, published: Sequence[Chunk]) -> AsyncGenerator[Piece | Base, None]:
    """`pieces` of an engine that goes on behind `published`. An error is told as it is: nothing follows what was published."""
    told = False
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            if not told and not _is_error(piece):
                yield Base(published)
                told = True
            yield piece


async def made_anew(pieces: Pieces, published: Sequence[Chunk]) -> AsyncGenerator[Piece | Base, None]:
    """`pieces` of an engine that starts from nothing, without those that readers have."""
    made: list[Chunk] = []
    own = ""
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            own = own or _id(piece)
            if _is_error(piece):
                yield piece
            elif len(made) == len(published):
                yield Base(published)
                yield dated(piece, published[0], own)
                break
            elif isinstance(piece, Chunk) and same(published[len(made)], dated(piece, published[0], own)):
                made.append(piece)
            else:
                yield Base(())
                for chunk in made:
                    yield chunk
                yield piece
                published = ()
                break
        async for piece in pieces:
            yield dated(piece, published[0], own) if published else piece


PieceT = TypeVar("PieceT", Chunk, Piece)


def dated(piece: PieceT, first: Chunk, own: str = "") -> PieceT:
    """With the time and the id of the attempt that made `first`: one answer has one of each.

    `own`: the id of this attempt's answer; any other is data, such as that of a row.
    """
    if not isinstance(piece, Chunk):
        return piece
    data, created = piece.data, CREATED.search(first.data)
    if created is not None:
        data = CREATED.sub(created[0], data, count=1)
    ours = _id(first) if own else ""
    if ours and ours != own == _id(piece):
        named = re.compile(rb'("id"\s*:\s*)' + re.escape(msgspec.json.encode(own)))
        data = named.sub(lambda found: found[1] + msgspec.json.encode(ours), data, count=1)
    return Chunk(data, piece.tokens, piece.prompt)


def _id(piece: Piece) -> str:
    try:
        return _named.decode(piece.data).id if isinstance(piece, Chunk) else ""
    except UNDECODABLE:
        return ""


def same(published: Chunk, made: Chunk) -> bool:
    """They say the same, whenever they were made."""
    if published.tokens != made.tokens:
        return False
    data = CREATED.sub(b"", published.data, count=1), CREATED.sub(b"", made.data, count=1)
    return data[0] == data[1] or _bare(published.data) == _bare(made.data)


def _bare(data: bytes) -> Any:
    """Without what two engines tell differently of the same tokens: ids of messages and tool calls are drawn, and log probabilities
    are not computed again for what is dropped."""
    try:
        frame = msgspec.json.decode(data)
    except UNDECODABLE:
        return data
    for name in ("created", "system_fingerprint", "metrics"):
        frame.pop(name, None)
    if isinstance(message := frame.get("message"), dict):  # of an error it is a text
        message.pop("id", None)
    (frame.get("usage") or {}).pop("prompt_tokens_details", None)
    for choice in frame.get("choices") or ():
        choice.pop("logprobs", None)
        for call in (choice.get("delta") or {}).get("tool_calls") or ():
            call.pop("id", None)
    return frame


def _is_error(piece: Piece) -> bool:
    return isinstance(piece, Answer) and piece.status >= 400
