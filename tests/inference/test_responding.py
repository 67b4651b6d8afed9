"""A response bears our id wherever the engine tells of it, and nowhere else."""

from collections.abc import AsyncGenerator

import pytest

from services.inference.engine import Answer, Chunk
from services.inference.responding import as_ours
from shared.messages import Response

OURS = "resp_smol.0.0.0.x"
Piece = Chunk | Answer


async def engine(*pieces: Piece) -> AsyncGenerator[Piece, None]:
    for piece in pieces:
        yield piece


async def ours(*pieces: Piece, asked: Response | None = None) -> list[Piece]:
    return [piece async for piece in as_ours(engine(*pieces), "smol.0.0.0.x", asked)]


async def test_every_event_tells_our_id_and_texts_stay() -> None:
    made = [
        Chunk(b'{"type":"response.created","response":{"id":"resp_9","output":[]}}', (1,), (2,)),
        Chunk(b'{"type":"response.output_text.delta","delta":"say \\"resp_9\\" to resp_9"}', (3,)),
        Chunk(b'{"type":"response.completed","response":{"id":"resp_9"}}'),
    ]
    told = await ours(*made, Answer(status=200, body=b""))
    assert told[0] == Chunk(
        b'{"type":"response.created","response":{"id":"%b","output":[]}}' % OURS.encode(), (1,), (2,)
    )
    assert told[1] == made[1]
    assert told[2] == Chunk(b'{"type":"response.completed","response":{"id":"%b"}}' % OURS.encode())


async def test_what_headrace_sees_to_is_told_as_it_was_asked() -> None:
    whole = Answer(status=200, body=b'{"id": "resp_9", "background": false, "previous_response_id": null}')
    (told,) = await ours(whole, asked=Response(background=True, previous="resp_before"))
    assert isinstance(told, Answer)
    assert told.body == b'{"id": "%b", "background": true, "previous_response_id": "resp_before"}' % OURS.encode()
    (plain,) = await ours(whole)
    assert isinstance(plain, Answer)
    assert plain.body == whole.body.replace(b"resp_9", OURS.encode())


@pytest.mark.parametrize(
    "piece",
    [Answer(status=400, body=b'{"error":{"message":"resp_9"}}'), Answer(status=200, body=b"<html>"), Chunk(b"{}")],
)
async def test_what_tells_no_id_stays_as_it_is(piece: Piece) -> None:
    assert await ours(piece) == [piece]


@pytest.mark.parametrize("id", [b"null", b'""', b"7"])
async def test_an_id_that_is_none_stays_and_so_does_all_that_looks_like_it(id: bytes) -> None:
    whole = Answer(status=200, body=b'{"id":%b,"error":null,"user":"","output":[{"id":"","n":7}]}' % id)
    assert await ours(whole) == [whole]


async def test_an_id_that_is_a_word_is_changed_where_it_is_an_id_alone() -> None:
    whole = Answer(status=200, body=b'{"id":"message","output":[{"type":"message","id":"msg_1"}]}')
    (told,) = await ours(whole)
    assert isinstance(told, Answer)
    assert told.body == whole.body.replace(b'"id":"message"', b'"id":"%b"' % OURS.encode())
