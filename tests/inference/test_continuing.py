"""Behind published chunks: an answer made anew is noticed only where it differs."""

from collections.abc import AsyncGenerator, Sequence

import pytest

from services.inference.continuing import Base, Piece, going_on, made_anew
from services.inference.engine import Answer, Chunk

DONE, BUSY = Answer(status=200, body=b""), Answer(status=503, body=b"{}")


def frame(text: str, created: int = 1) -> Chunk:
    return Chunk(
        b'{"id":"c","created":%d,"choices":[{"delta":{"content":"%b"}}]}' % (created, text.encode()), (ord(text),)
    )


def frames(text: str, created: int = 1) -> list[Chunk]:
    return [frame(letter, created) for letter in text]


async def engine(pieces: Sequence[Piece]) -> AsyncGenerator[Piece, None]:
    for piece in pieces:
        yield piece


async def anew(published: str, pieces: Sequence[Piece]) -> list[Piece | Base]:
    return [piece async for piece in made_anew(engine(pieces), frames(published))]


async def test_an_answer_that_is_the_same_again_goes_on_as_of_the_first_attempt() -> None:
    assert await anew("ab", [*frames("abcd", created=9), DONE]) == [Base(frames("ab")), *frames("cd"), DONE]


async def test_an_answer_that_was_published_whole_only_ends() -> None:
    assert await anew("ab", [*frames("ab", created=9), DONE]) == [Base(frames("ab")), DONE]


@pytest.mark.parametrize("other", ["xbcd", "axcd"])
async def test_an_answer_that_differs_starts_over_and_is_told_whole(other: str) -> None:
    made = frames(other, created=9)
    assert await anew("ab", [*made, DONE]) == [Base(()), *made, DONE]


async def test_an_answer_that_ends_sooner_starts_over() -> None:
    made = frames("a", created=9)
    assert await anew("ab", [*made, DONE]) == [Base(()), *made, DONE]


async def test_an_error_changes_nothing_of_what_is_published() -> None:
    assert await anew("ab", [*frames("a"), BUSY]) == [BUSY]
    assert [piece async for piece in going_on(engine([BUSY]), frames("ab"))] == [BUSY]


async def test_an_engine_that_goes_on_is_told_of_before_its_first_chunk() -> None:
    told = [piece async for piece in going_on(engine([frame("c"), DONE]), frames("ab"))]
    assert told == [Base(frames("ab")), frame("c"), DONE]


async def test_a_response_made_anew_has_the_time_of_the_first_attempt() -> None:
    def event(text: str, at: int) -> Chunk:
        return Chunk(b'{"type":"%b","response":{"id":"r","created_at":%d}}' % (text.encode(), at), ())

    published = [event("response.created", 1)]
    made: list[Piece] = [event("response.created", 9), event("response.completed", 9), DONE]
    told = [piece async for piece in made_anew(engine(made), published)]
    assert told == [Base(published), event("response.completed", 1), DONE]


async def test_an_answer_made_anew_keeps_the_id_of_the_first_attempt() -> None:
    """Upstreams draw one for each call."""

    def frame(id: str, text: str) -> Chunk:
        choice = b'{"delta":{"content":"%b","tool_calls":[{"id":"t"}]}}' % text.encode()
        return Chunk(b'{"choices":[%b],"created":1,"id":"%b"}' % (choice, id.encode()))

    said = r"a \"id\":\"two\""
    published = [frame("one", "a")]
    made: list[Piece] = [frame("two", "a"), frame("two", said), DONE]
    told = [piece async for piece in made_anew(engine(made), published)]
    assert told == [Base(published), frame("one", said), DONE]


async def test_ids_that_are_data_stay_and_are_compared() -> None:
    def rows(*ids: int) -> list[Chunk]:
        return [Chunk(b'{"id":"row-%d","choices":null}' % id) for id in ids]

    told = [piece async for piece in made_anew(engine([*rows(1, 2, 3), DONE]), rows(1))]
    assert told == [Base(rows(1)), *rows(2, 3), DONE]
    told = [piece async for piece in made_anew(engine([*rows(1, 3), DONE]), rows(1, 2))]
    assert told == [Base(()), *rows(1, 3), DONE]


async def test_a_message_made_anew_is_the_same_whatever_its_id() -> None:
    def start(id: str) -> Chunk:
        return Chunk(b'{"type":"message_start","message":{"id":"%b","role":"assistant"}}' % id.encode())

    stop = Chunk(b'{"type":"message_stop"}')
    told = [piece async for piece in made_anew(engine([start("two"), stop, DONE]), [start("one")])]
    assert told == [Base([start("one")]), stop, DONE]
