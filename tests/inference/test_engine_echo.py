import asyncio
import base64
import io
import re
import struct
import subprocess
import sys
import wave
from typing import Any

import msgspec
import pytest

from services.inference.engine import Answer, Call, CannotResume, Chunk, EngineDead
from services.inference.engine_echo import EchoEngine
from shared.chunks import assemble, deltas, first_text
from shared.clock import monotonic_s
from shared.routes import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    MESSAGES,
    RESPONSES,
    SPEECH,
    TOKENIZE,
    TRANSCRIPTIONS,
)
from tests.support.engines import ask, called, hello, text_of


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine(model="m", tokens_per_s=0, first_token_ms=0, max_model_len=16, slots=0)


async def test_an_adapter_answers_under_its_own_name() -> None:
    engine = EchoEngine(model="m", adapters=["poet"], tokens_per_s=0, first_token_ms=0, max_model_len=16, slots=0)
    _, answer = await ask(engine, CHAT, model="poet", messages=hello("a"))
    assert (answer.status, msgspec.json.decode(answer.body)["model"]) == (200, "poet")
    _, refused = await ask(engine, CHAT, model="painter", messages=hello("a"))
    assert (refused.status, b"m, poet" in refused.body) == (404, True)


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
    _, answer = await ask(engine, "/v1/rerank", model="m", query="x", documents=["y"])
    assert (answer.status, msgspec.json.decode(answer.body)["error"]["param"]) == (404, "route")


async def test_a_body_that_names_no_model_means_the_one_that_is_served(engine: EchoEngine) -> None:
    _, answer = await ask(engine, CHAT, messages=hello("x"))
    assert msgspec.json.decode(answer.body)["model"] == "m"


async def said(engine: EchoEngine, route: str, **asked: Any) -> Any:
    _, answer = await ask(engine, route, model="m", **asked)
    assert answer.status == 200, answer.body
    return msgspec.json.decode(answer.body)


@pytest.mark.parametrize(
    ("route", "asked"),
    [
        (RESPONSES, {"input": "to be or"}),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "to be or"}]}], "instructions": "x y"}),
        (MESSAGES, {"messages": hello("to be or"), "max_tokens": 9, "system": "be brief"}),
    ],
)  # fmt: skip
async def test_a_stream_of_events_adds_up_to_the_whole_answer(
    engine: EchoEngine, route: str, asked: dict[str, Any]
) -> None:
    chunks, end = await ask(engine, route, model="m", stream=True, **asked)
    whole = await said(engine, route, **asked)
    assert msgspec.json.decode(assemble(route, [chunk.data for chunk in chunks]).result) == whole | when(chunks, route)
    assert [text for chunk in chunks for _, text in deltas(chunk.data)] == ["to", " be", " or"]
    assert [len(chunk.tokens) for chunk in chunks].count(1) == 3
    assert (first_text(msgspec.json.encode(whole)), end) == ("to be or", Answer(status=200, body=b""))


def when(chunks: list[Chunk], route: str) -> dict[str, int]:
    """The second may have turned between two calls."""
    if route != RESPONSES:
        return {}
    return {"created_at": msgspec.json.decode(chunks[0].data)["response"]["created_at"]}


async def test_a_response_that_is_cut_says_so(engine: EchoEngine) -> None:
    made = await said(engine, RESPONSES, input="to be or not", max_output_tokens=2)
    assert (made["status"], made["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (await said(engine, MESSAGES, messages=hello("to be or"), max_tokens=2))["stop_reason"] == "max_tokens"


async def test_streams_of_events_are_not_gone_on_with(engine: EchoEngine) -> None:
    body = msgspec.json.encode({"model": "m", "input": "to be", "stream": True})
    with pytest.raises(CannotResume):
        await called(engine, Call(task_id="t", route=RESPONSES, body=body, priority=1, published=(Chunk(b"{}"),)))


async def test_equal_words_have_equal_vectors_and_shared_words_near_ones(engine: EchoEngine) -> None:
    made = await said(engine, EMBEDDINGS, input=["red wine glass", "red wine bottle", "spare tyre"], dimensions=32)
    first, near, far = (item["embedding"] for item in made["data"])
    assert dot(first, first) == pytest.approx(1)
    assert dot(first, near) > dot(first, far)
    assert made["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    packed = await said(engine, EMBEDDINGS, input="red wine glass", dimensions=32, encoding_format="base64")
    assert struct.unpack("<32f", base64.b64decode(packed["data"][0]["embedding"])) == pytest.approx(first)


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("given", "count"), [("a b", 1), (["a", "b"], 2), ([1, 2], 1), ([[1], [2], [3]], 3)])
async def test_every_form_of_input_is_embedded(engine: EchoEngine, given: Any, count: int) -> None:
    assert len((await said(engine, EMBEDDINGS, input=given))["data"]) == count


async def test_tokens_are_counted_and_told(engine: EchoEngine) -> None:
    told = await said(engine, TOKENIZE, prompt="ho ho hum", return_token_strs=True)
    assert (told["count"], told["max_model_len"], told["token_strs"]) == (3, 16, ["ho", " ho", " hum"])
    assert await said(engine, COUNT_TOKENS, messages=hello("to be"), system="or not") == {"input_tokens": 4}


async def test_speech_is_a_sound_of_one_tone_a_word(engine: EchoEngine) -> None:
    _, answer = await ask(engine, SPEECH, model="m", input="do re mi", voice="alloy")
    assert (answer.status, answer.content_type) == (200, "audio/wav")
    with wave.open(io.BytesIO(answer.body)) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (8000, 3 * 400)
    assert (await ask(engine, SPEECH, model="m", input="do re mi", voice="alloy"))[1] == answer


async def test_a_sound_in_pieces_is_refused(engine: EchoEngine) -> None:
    _, answer = await ask(engine, SPEECH, model="m", input="do re mi", voice="alloy", stream_format="sse")
    assert (answer.status, msgspec.json.decode(answer.body)["error"]["param"]) == (400, "stream_format")


FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n12345\r\n--x%b--\r\n'
FIELD = b'\r\nContent-Disposition: form-data; name="response_format"\r\n\r\nsrt\r\n--x'


async def test_a_transcription_is_the_name_and_size_of_the_file(engine: EchoEngine) -> None:
    call = Call(
        task_id="t", route=TRANSCRIPTIONS, body=FORM % b"", content_type="multipart/form-data; boundary=x", priority=1
    )
    _, answer = await called(engine, call)
    assert msgspec.json.decode(answer.body) == {"text": "a.wav 5 bytes"}
    _, refused = await called(engine, msgspec.structs.replace(call, body=FORM % FIELD))
    assert (refused.status, msgspec.json.decode(refused.body)["error"]["param"]) == (400, "response_format")


@pytest.mark.parametrize(
    ("route", "asked", "param"),
    [
        (RESPONSES, {"input": "x", "tools": [{"type": "function", "name": "f"}]}, "tools"),
        (RESPONSES, {"input": "x", "background": True}, "background"),
        (RESPONSES, {"input": "x", "text": {"format": {"type": "json_object"}}}, "text"),
        (RESPONSES, {}, "body.input"),
        (MESSAGES, {"messages": hello("x"), "max_tokens": 2, "stop_sequences": ["a"]}, "stop_sequences"),
        (EMBEDDINGS, {}, "input"),
        (EMBEDDINGS, {"input": "x", "dimensions": 0}, "dimensions"),
        (EMBEDDINGS, {"input": "x", "encoding_format": "hex"}, "encoding_format"),
        (EMBEDDINGS, {"input": 7}, "body.input"),
        (TOKENIZE, {}, "prompt"),
        (SPEECH, {"input": "x", "response_format": "mp3"}, "response_format"),
        (TRANSCRIPTIONS, {"file": "x"}, "content_type"),
    ],
)
async def test_what_other_routes_cannot_honour_is_refused_too(
    engine: EchoEngine, route: str, asked: dict[str, Any], param: str | None
) -> None:
    chunks, answer = await ask(engine, route, model="m", **asked)
    error = msgspec.json.decode(answer.body)["error"]
    assert (chunks, answer.status, error["param"]) == ([], 400, param)


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
