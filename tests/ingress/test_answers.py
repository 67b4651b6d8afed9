"""What a waiting client is given of an answer that starts over, or is lost."""

from typing import Any

import pytest
from msgspec import Raw
from starlette.types import Message

from services.ingress.answers import Answer
from services.ingress.attendance import Attendance
from services.ingress.openai import OpenAI
from services.ingress.served import Served
from shared.clock import monotonic_s
from shared.lifecycle import State
from shared.messages import Chunks, Finished, Reset
from shared.routes import CHAT
from tests.support import tasks

AT = (1, 1)
LOST = Reset(attempt=2, why="lost")


def chunks(number: int, attempt: int = 1) -> Chunks:
    return Chunks(attempt=attempt, first=number, last=number, chunks=[Raw(b'{"n":%d}' % number)])


class Client:
    """Of a stream. `happens`: events that come while it is sent the first bytes."""

    def __init__(self, answer: Answer, *happens: Any) -> None:
        self.status, self.body = 0, b""
        self._answer, self._happens = answer, happens

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")
        happens, self._happens = self._happens, ()
        for event in happens:
            if event is None:
                self._answer.on_sync(None)
            else:
                self._answer.on_event(AT, event)


@pytest.fixture
async def answer() -> Answer:
    return Answer(Served(tasks.new_id()), chunks=True)


async def streamed(answer: Answer, *happens: Any) -> Client:
    client = Client(answer, *happens)
    door: Any = OpenAI(*[None] * 7)  # type: ignore[arg-type] # a stream needs none of them
    await door.stream(CHAT, answer, client.send, monotonic_s())
    return client


async def test_a_start_over_before_the_first_chunk_is_nothing_to_a_client(answer: Answer) -> None:
    for event in (chunks(1), LOST, chunks(1, attempt=2)):
        answer.on_event(AT, event)
    assert await answer.next() == [chunks(1, attempt=2)]


async def test_a_start_over_is_no_first_byte(answer: Answer) -> None:
    """The status is not sent before there is something to stream: a failure can still be told as one."""
    answer.on_event(AT, LOST)
    end = Finished(attempt=2, last=0, state=State.FAILED, status=502)
    answer.on_event(AT, end)
    assert await answer.next() == []
    assert answer.finished.result() is end


async def test_a_start_over_after_the_first_chunk_ends_the_stream(answer: Answer) -> None:
    answer.on_event(AT, chunks(1))
    client = await streamed(answer, LOST, chunks(1, attempt=2))
    assert (client.status, client.body.count(b'{"n":1}')) == (200, 1)
    assert b"stream_reset" in client.body


async def test_a_task_that_is_lost_in_the_middle_ends_the_stream_with_an_error(answer: Answer) -> None:
    answer.on_event(AT, chunks(1))
    client = await streamed(answer, None)
    assert client.status == 200
    assert b'"code":"task_not_found"' in client.body


async def test_a_task_that_is_lost_is_not_cancelled(answer: Answer) -> None:
    """The note of it would be kept for days."""
    unused: Any = None
    attendance = Attendance(unused, unused)
    with attendance.hold(answer):
        answer.on_event(AT, chunks(1))
        assert b"task_not_found" in (await streamed(answer, None)).body
    assert not attendance._cancelling
