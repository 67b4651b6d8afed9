import asyncio
import re
import subprocess
import sys

import msgspec
import pytest

from services.inference.engine import Answer, Call, CannotResume, Chunk, EngineDead
from services.inference.engine_echo import EchoEngine
from shared.clock import monotonic_s
from shared.request import CHAT, COMPLETIONS
from tests.support.engines import ask, called, hello, text_of


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine(model="m", tokens_per_s=0, first_token_ms=0, max_model_len=16, slots=0)


async def test_a_chat_is_answered_with_the_last_user_message(engine: EchoEngine) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "to be"},
        {"role": "system", "content": "x"},
    ]
    _, answer = await ask(engine, CHAT, model="m", messages=messages)
    made = msgspec.json.decode(answer.body)
    assert made["choices"][0]["message"] == {"role": "assistant", "content": "to be"}
    assert made["choices"][0]["finish_reason"] == "stop"
    assert made["usage"] == {"prompt_tokens": 4, "total_tokens": 6, "completion_tokens": 2}


async def test_content_in_parts_is_joined(engine: EchoEngine) -> None:
    parts = [{"type": "text", "text": "to "}, {"type": "text", "text": "be"}]
    chunks, _ = await ask(engine, CHAT, model="m", messages=[{"role": "user", "content": parts}], stream=True)
    assert text_of(chunks) == "to be"


async def test_a_completion_is_answered_with_its_prompt(engine: EchoEngine) -> None:
    _, answer = await ask(engine, COMPLETIONS, model="m", prompt=" to  be\n")
    assert msgspec.json.decode(answer.body)["choices"][0]["text"] == " to  be\n"


async def test_a_stream_makes_one_chunk_of_each_word_and_ends_with_an_empty_answer(engine: EchoEngine) -> None:
    chunks, answer = await ask(engine, COMPLETIONS, model="m", prompt="to be or", stream=True)
    assert [msgspec.json.decode(chunk.data)["choices"][0]["text"] for chunk in chunks] == ["to", " be", " or", ""]
    assert answer == Answer(status=200, body=b"")


async def test_max_tokens_cuts_the_answer_and_says_so(engine: EchoEngine) -> None:
    chunks, _ = await ask(engine, CHAT, model="m", messages=hello("to be or not"), stream=True, max_tokens=2)
    assert text_of(chunks) == "to be"
    assert msgspec.json.decode(chunks[-1].data)["choices"][0]["finish_reason"] == "length"


async def test_usage_comes_as_a_last_chunk_when_it_is_asked_for(engine: EchoEngine) -> None:
    chunks, _ = await ask(
        engine, CHAT, model="m", messages=hello("to be"), stream=True, stream_options={"include_usage": True}
    )
    last = msgspec.json.decode(chunks[-1].data)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2


async def test_the_same_words_have_the_same_token_ids(engine: EchoEngine) -> None:
    chunks, _ = await ask(engine, COMPLETIONS, model="m", prompt=" ho ho", stream=True)
    first, second, end = (chunk.tokens for chunk in chunks)
    assert first == second != ()
    assert end == ()


@pytest.mark.parametrize(
    ("asked", "status", "param"),
    [
        ({"model": "nope", "messages": hello("x")}, 404, "model"),
        ({"model": "m"}, 400, "body.messages"),
        ({"model": "m", "messages": []}, 400, "body.messages"),
        ({"model": "m", "messages": hello("x"), "temperature": "hot"}, 400, "body.temperature"),
        ({"model": "m", "messages": hello("x"), "n": 2}, 400, "n"),
        ({"model": "m", "messages": hello("x"), "stop": ["a"]}, 400, "stop"),
        ({"model": "m", "messages": hello("x"), "logprobs": True}, 400, "logprobs"),
        ({"model": "m", "messages": hello("x"), "response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"model": "m", "messages": hello("x"), "stream_options": {}}, 400, "stream_options"),
        ({"model": "m", "messages": hello("x"), "max_tokens": 0}, 400, "max_tokens"),
        ({"model": "m", "messages": hello("x"), "max_tokens": 17}, 400, "max_tokens"),
        ({"model": "m", "messages": hello("x " * 9), "max_tokens": 9}, 400, "input_tokens"),
        ({"model": "m", "messages": hello("x " * 20)}, 400, "input_tokens"),
    ],
)
async def test_what_cannot_be_honoured_is_refused(
    engine: EchoEngine, asked: dict[str, object], status: int, param: str
) -> None:
    chunks, answer = await ask(engine, CHAT, **asked)
    error = msgspec.json.decode(answer.body)["error"]
    assert (chunks, answer.status, error["code"], error["param"]) == ([], status, status, param)


async def test_a_body_that_is_no_json_is_refused(engine: EchoEngine) -> None:
    _, answer = await called(engine, Call(task_id="t", route=CHAT, body=b"{", priority=1))
    assert answer.status == 400


async def test_a_route_it_does_not_know_is_refused(engine: EchoEngine) -> None:
    _, answer = await ask(engine, "/v1/embeddings", model="m", input="x")
    assert answer.status == 400


async def test_a_task_holds_its_slot_until_it_is_read_or_closed(engine: EchoEngine) -> None:
    body = msgspec.json.encode({"model": "m", "prompt": "to be", "stream": True})
    running = engine.run(Call(task_id="t", route=COMPLETIONS, body=body, priority=1))
    assert isinstance(await anext(running), Chunk)
    assert engine.capacity().running == 1
    await running.aclose()
    assert engine.capacity().running == 0


async def test_pauses_are_kept() -> None:
    engine = EchoEngine(model="m", tokens_per_s=100, first_token_ms=50, max_model_len=16, slots=3)
    started = monotonic_s()
    await ask(engine, COMPLETIONS, model="m", prompt="a b c d e")
    assert monotonic_s() - started >= 0.1
    assert engine.capacity().slots == 3


def asked_of(text: str, *published: Chunk, task_id: str = "t", stream: bool = True) -> Call:
    body = msgspec.json.encode({"model": "m", "prompt": text, "stream": stream})
    return Call(task_id=task_id, route=COMPLETIONS, body=body, priority=1, published=published)


async def test_a_continuation_is_the_rest_byte_for_byte_with_the_date_of_the_first_attempt(engine: EchoEngine) -> None:
    whole, _ = await called(engine, asked_of("to be or not to be"))
    past = [Chunk(re.sub(rb'"created":\d+', b'"created":7', chunk.data), chunk.tokens) for chunk in whole]
    for cut in range(1, len(past) + 1):
        rest, answer = await called(engine, asked_of("to be or not to be", *past[:cut]))
        assert (rest, answer) == (past[cut:], Answer(status=200, body=b""))


async def test_chunks_that_are_not_its_own_are_not_continued(engine: EchoEngine) -> None:
    for foreign in (Chunk(b"{}"), Chunk(b"\xff"), Chunk(b'{"created":1}')):
        with pytest.raises(CannotResume):
            await called(engine, asked_of("to be", foreign))
    assert engine.capacity().running == 0


@pytest.fixture
def faulty() -> EchoEngine:
    return EchoEngine(model="m", tokens_per_s=0, first_token_ms=0, max_model_len=16, slots=0, faults=True)


async def test_words_for_faults_are_mere_words_without_them(engine: EchoEngine) -> None:
    for word in ("!exit", "!dead", "!hang", "!error", "!busy", "!busy-once"):
        chunks, answer = await called(engine, asked_of(word))
        assert (text_of(chunks), answer.status) == (word, 200)


@pytest.mark.parametrize(("word", "status"), [("!error", 500), ("!busy", 429)])
async def test_a_failure_comes_every_time(faulty: EchoEngine, word: str, status: int) -> None:
    for stream, first in ((True, status == 500), (False, False), (True, status == 500)):
        chunks, answer = await called(faulty, asked_of(f"{word} to be", stream=stream))
        assert (len(chunks), answer.status) == (int(first), status)
        assert msgspec.json.decode(answer.body)["error"]["code"] == status


async def test_a_task_may_find_the_engine_busy_once(faulty: EchoEngine) -> None:
    for task_id in ("t1", "t2"):
        answers = [(await called(faulty, asked_of("!busy-once", task_id=task_id)))[1].status for _ in range(2)]
        assert answers == [503, 200]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_told_to_die_is_dead(faulty: EchoEngine, stream: bool) -> None:
    with pytest.raises(EngineDead):
        await called(faulty, asked_of("!dead to be", stream=stream))
    with pytest.raises(EngineDead):
        await faulty.health()
    with pytest.raises(EngineDead):
        await called(faulty, asked_of("to be"))


async def test_an_answer_that_hangs_ends_when_it_is_closed(faulty: EchoEngine) -> None:
    running = faulty.run(asked_of("!hang to be"))
    assert isinstance(await anext(running), Chunk)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(running), 0.05)
    assert faulty.capacity().running == 0


async def test_each_attempt_gets_one_chunk_further_before_its_trouble(faulty: EchoEngine) -> None:
    first, _ = await called(faulty, asked_of("!error to be"))
    second, _ = await called(faulty, asked_of("!error to be", *first))
    assert text_of(first + second) == "!error to"


def test_a_process_told_to_exit_ends_at_once() -> None:
    ended = subprocess.run([sys.executable, "-c", EXITING], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, b"one chunk\n")


EXITING = """
import asyncio
from services.inference.engine import Call
from services.inference.engine_echo import EchoEngine

async def main():
    engine = EchoEngine(model="m", tokens_per_s=0, first_token_ms=0, max_model_len=16, slots=0, faults=True)
    body = b'{"model":"m","prompt":"!exit now","stream":true}'
    async for chunk in engine.run(Call(task_id="t", route="/v1/completions", body=body, priority=1)):
        print("one chunk", flush=True)

asyncio.run(main())
"""
