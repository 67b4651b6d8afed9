"""A response of the Responses API is known by its task: wherever the engine tells of it, it bears our id.

Engines draw an id of their own, under which they keep nothing for us. So each is replaced by `resp_<task id>`, from which any
replica of ingress finds the response without a look-up; and what the engine was not asked, because Headrace sees to it (that the
response goes on in the background, what it follows), is told as the client asked it. The replacements are made in the JSON as it
stands: a quotation mark within a text has a backslash before it, so a name with its two is never part of one.
"""

import contextlib
import re
from collections.abc import AsyncGenerator, Callable

import msgspec

from services.inference.engine import Answer, Chunk
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
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError):
        return lambda data: data
    theirs, ours = msgspec.json.encode(id), msgspec.json.encode(response_id(task_id))
    told_else = []
    if asked is not None and asked.background:
        told_else.append((rb'"background":\s*false', b'"background":true'))
    if asked is not None and asked.previous:
        previous = b'"previous_response_id":' + msgspec.json.encode(asked.previous)
        told_else.append((rb'"previous_response_id":\s*null', previous))

    def change(data: bytes) -> bytes:
        data = data.replace(theirs, ours)
        for pattern, value in told_else:
            data = re.sub(pattern, lambda _, value=value: value, data)  # type: ignore[misc]
        return data

    return change
