"""A response of the Responses API is known by its task: wherever the engine tells of it, it bears our id.

Engines draw an id of their own, under which they keep nothing for us. So each is replaced by `resp_<task id>`, from which any
replica of ingress finds the response without a look-up; and what the engine was not asked, because Headrace sees to it (that the
response goes on in the background, what it follows), is told as the client asked it. The replacements are made in the JSON as it
stands, of a value behind its name: a quotation mark within a text has a backslash before it, so a name with its two is never
part of one.
"""

import contextlib
import re
from collections.abc import AsyncGenerator, Callable

import msgspec

from services.inference.engine import Answer, Chunk
from shared.errors import UNDECODABLE
from shared.ids import response_id
from shared.messages import Response


async def as_ours(
    pieces: AsyncGenerator[Chunk | Answer, None], task_id: str, asked: Response | None
) -> AsyncGenerator[Chunk | Answer, None]:
    change: Callable[[bytes], bytes] | None = None
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            match piece:
                case Chunk():
                    change = change or _changing(piece.data, task_id, asked)
                    yield Chunk(change(piece.data), piece.tokens, piece.prompt)
                case Answer(body=body) if body and piece.status < 400 and not piece.content_type:
                    change = change or _changing(body, task_id, asked)
                    yield msgspec.structs.replace(piece, body=change(body))
                case _:
                    yield piece


def _changing(first: bytes, task_id: str, asked: Response | None) -> Callable[[bytes], bytes]:
    """What to do to all that follows, from what tells the engine's id: a whole response, or the first event of a stream."""
    try:
        told = msgspec.json.decode(first, type=dict)
        id = (told.get("response") or told)["id"]
    except (*UNDECODABLE, KeyError, TypeError):
        return lambda data: data
    if not (isinstance(id, str) and id):  # the items of a response may have none either
        return lambda data: data
    changes = [_told(b"(?:response_)?id", msgspec.json.encode(id), response_id(task_id))]
    if asked is not None and asked.background:
        changes.append(_told(b"background", b"false", True))
    if asked is not None and asked.previous:
        changes.append(_told(b"previous_response_id", b"null", asked.previous))

    def change(data: bytes) -> bytes:
        for pattern, value in changes:
            data = pattern.sub(lambda found, value=value: found[1] + value, data)  # type: ignore[misc]
        return data

    return change


def _told(name: bytes, theirs: bytes, ours: str | bool) -> tuple[re.Pattern[bytes], bytes]:
    """What to look for, its name being the first group, and what to put in the place of `theirs`."""
    return re.compile(rb'("%b"\s*:\s*)%b' % (name, re.escape(theirs))), msgspec.json.encode(ours)
