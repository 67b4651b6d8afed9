"""What holds for every engine: the same tests on echo, on an upstream, on a callable that echoes, and on real vLLM."""

import asyncio
from typing import Any

import msgspec
import pytest

from services.inference.engine import Call, Chunk, Engine
from shared.chunks import assemble, deltas, ending_of, first_text
from shared.events import kind_of
from shared.routes import CHAT, COMPLETIONS, MESSAGES, RESPONSES, SPEECH, TRANSCRIPTIONS
from tests.support.engines import IN_PROCESS, MODEL, OF_MEDIA, OF_OPENAI, ONLY_REAL, ask, called, hello, text_of
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.asyncio(loop_scope="package"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's imports warn of their own deprecations
    pytest.mark.timeout(180),
]


def decode(data: bytes) -> Any:
    return msgspec.json.decode(data)


QUESTION = "What is the capital of France? Answer in one word, please."


async def test_a_streamed_chat_says_what_the_whole_one_says(engine: Engine) -> None:
    asked = {"model": MODEL, "messages": hello(QUESTION), "temperature": 0, "max_tokens": 12}
    chunks, end = await ask(engine, CHAT, **asked, stream=True)
    _, answer = await ask(engine, CHAT, **asked)
    assert (end.status, end.body, answer.status) == (200, b"", 200)
    assert text_of(chunks) == decode(answer.body)["choices"][0]["message"]["content"] != ""


async def test_a_streamed_completion_says_what_the_whole_one_says(engine: Engine) -> None:
    asked = {"model": MODEL, "prompt": "one two three four", "temperature": 0, "max_tokens": 8}
    chunks, _ = await ask(engine, COMPLETIONS, **asked, stream=True)
    _, answer = await ask(engine, COMPLETIONS, **asked)
    assert text_of(chunks) == decode(answer.body)["choices"][0]["text"] != ""


@OF_OPENAI
@pytest.mark.parametrize(
    ("route", "asked"),
    [
        (RESPONSES, {"input": QUESTION, "max_output_tokens": 12}),
        (MESSAGES, {"messages": hello(QUESTION), "max_tokens": 12}),
    ],
    ids=["response", "message"],
)
async def test_a_stream_of_events_adds_up_to_what_the_whole_answer_says(
    engine: Engine, route: str, asked: dict[str, Any]
) -> None:
    asked = {"model": MODEL, "temperature": 0, **asked}
    chunks, end = await ask(engine, route, **asked, stream=True)
    _, answer = await ask(engine, route, **asked)
    assert (end.status, end.body, answer.status) == (200, b"", 200)
    assembled = assemble(route, [chunk.data for chunk in chunks])
    assert first_text(assembled.result) == first_text(answer.body) not in (None, "")
    assert "".join(text for chunk in chunks for _, text in deltas(chunk.data)) == first_text(answer.body)
    told = ending_of(answer.body)
    assert (assembled.finish_reason, decode(assembled.usage)) == (told.finish_reason, decode(told.usage))
    assert all(kind_of(chunk.data) for chunk in chunks)


@OF_OPENAI
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("route", "asked"), [(RESPONSES, {"input": 7}), (MESSAGES, {"messages": "x", "max_tokens": 1})]
)
async def test_a_faulty_request_on_other_routes_is_answered_with_an_error(
    engine: Engine, route: str, asked: dict[str, Any], stream: bool
) -> None:
    chunks, answer = await ask(engine, route, model=MODEL, stream=stream, **asked)
    assert (chunks, answer.status) == ([], 400)
    assert decode(answer.body)["error"]["message"]


@OF_OPENAI
async def test_the_chunks_of_a_chat_are_those_that_an_openai_client_expects(engine: Engine) -> None:
    chunks, _ = await ask(
        engine,
        CHAT,
        model=MODEL,
        messages=hello(QUESTION),
        stream=True,
        max_tokens=3,
        stream_options={"include_usage": True},
    )
    made = [decode(chunk.data) for chunk in chunks]
    assert {(chunk["object"], chunk["model"], chunk["id"]) for chunk in made} == {
        ("chat.completion.chunk", MODEL, "chatcmpl-t1")
    }
    assert made[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [c["finish_reason"] for chunk in made for c in chunk["choices"] if c["finish_reason"]] == ["length"]
    assert made[-1]["choices"] == []
    assert made[-1]["usage"]["completion_tokens"] == 3


@OF_MEDIA
async def test_a_form_comes_to_the_engine_with_its_fields_and_its_file(engine: Engine) -> None:
    sound = b"RIFF\x00\xff\r\n--x"
    parts = [b'name="model"\r\n\r\n' + MODEL.encode(), b'name="file"; filename="a.wav"\r\n\r\n' + sound]
    body = (
        b"".join(b"--bound\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--bound--\r\n"
    )
    form = "multipart/form-data; boundary=bound"
    chunks, answer = await called(
        engine, Call(task_id="t1", route=TRANSCRIPTIONS, body=body, content_type=form, priority=1)
    )
    assert (chunks, answer.status) == ([], 200)
    assert decode(answer.body)["text"] == f"a.wav {len(sound)} bytes"


@OF_MEDIA
async def test_an_answer_that_is_no_json_comes_with_its_content_type(engine: Engine) -> None:
    chunks, answer = await ask(engine, SPEECH, model=MODEL, input="one two", voice="x")
    assert (chunks, answer.status, answer.content_type) == ([], 200, "audio/wav")
    assert answer.body.startswith(b"RIFF")


@IN_PROCESS
async def test_the_chunks_carry_as_many_token_ids_as_were_made(engine: Engine) -> None:
    chunks, _ = await ask(engine, COMPLETIONS, model=MODEL, prompt="one two three four", stream=True, max_tokens=4)
    assert sum(len(chunk.tokens) for chunk in chunks) == 4
    assert not any(chunk.prompt for chunk in chunks[1:])


@OF_OPENAI
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("faulty", "status", "param"),
    [
        ({"model": "nope"}, 404, "model"),
        ({"temperature": "hot"}, 400, "body.temperature"),
        ({"max_tokens": 100_000}, 400, "max_tokens"),
        ({"messages": hello("to be or not to be " * 100)}, 400, "input_tokens"),
    ],
)
async def test_a_faulty_request_is_answered_with_an_openai_error(
    engine: Engine, faulty: dict[str, Any], status: int, param: str, stream: bool
) -> None:
    chunks, answer = await ask(engine, CHAT, **{"model": MODEL, "messages": hello("Hi"), "stream": stream} | faulty)
    error = decode(answer.body)["error"]
    assert (chunks, answer.status, error["code"], error["param"]) == ([], status, status, param)
    assert error.keys() == {"message", "type", "param", "code"}


async def test_as_many_run_at_once_as_there_are_slots_and_closing_one_frees_its_slot(engine: Engine) -> None:
    assert engine.capacity().slots == 4
    body = msgspec.json.encode({"model": MODEL, "prompt": "to be or not " * 15, "stream": True, "max_tokens": 150})
    runs = [engine.run(Call(task_id=f"t{i}", route=COMPLETIONS, body=body, priority=1)) for i in range(4)]
    for run in runs:
        assert isinstance(await anext(run), Chunk)
    await wait_until(lambda: engine.capacity().running == 4, "four run")
    for run in runs:
        await run.aclose()
    await wait_until(lambda: engine.capacity().running == 0, "none runs")
    await engine.health()


async def test_an_engine_tells_that_it_goes_on_and_what_it_had_to_put_back(engine: Engine) -> None:
    before = engine.capacity()
    await ask(engine, COMPLETIONS, model=MODEL, prompt="one two three four", stream=True, max_tokens=4)
    after = engine.capacity()
    assert after.steps > before.steps
    assert after.preemptions == before.preemptions == 0
    assert engine.remote is (engine.name == "openai")


@ONLY_REAL
async def test_the_prompt_ids_and_the_ids_made_reproduce_the_text(engine: Engine) -> None:
    asked = {"model": MODEL, "prompt": "one two three four", "temperature": 0, "stream": True}
    whole, _ = await ask(engine, COMPLETIONS, **asked, max_tokens=12)
    tokens = [token for chunk in whole for token in chunk.tokens]
    goes_on = {**asked, "prompt": [*whole[0].prompt, *tokens[:5]], "max_tokens": 7}
    rest, _ = await ask(engine, COMPLETIONS, **goes_on)
    assert [token for chunk in rest for token in chunk.tokens] == tokens[5:]


@ONLY_REAL
async def test_an_interactive_task_overtakes_batch_work_that_waits_inside_the_engine(engine: Engine) -> None:
    begun: list[str] = []

    async def run(name: str, priority: int, tokens: int) -> None:
        body = {"model": MODEL, "prompt": "to be", "stream": True, "max_tokens": tokens, "ignore_eos": True}
        call = Call(task_id=name, route=COMPLETIONS, body=msgspec.json.encode(body), priority=priority)
        async for _ in engine.run(call):
            if name not in begun:
                begun.append(name)

    async with asyncio.TaskGroup() as tasks:
        for i in range(4):
            tasks.create_task(run(f"running {i}", 0, 40))
        await wait_until(lambda: len(begun) == 4, "all slots are taken")
        for i in range(3):
            tasks.create_task(run(f"batch {i}", 2, 2))
        await wait_until(lambda: engine.capacity().waiting == 3, "batch work waits")
        tasks.create_task(run("interactive", 0, 2))
    assert begun[4] == "interactive"


@ONLY_REAL
async def test_a_fault_found_after_the_stream_began_is_an_answer_not_a_chunk(engine: Engine) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    chunks, answer = await ask(engine, CHAT, model=MODEL, messages=hello("Hi"), stream=True, response_format=schema)
    assert chunks == []
    assert answer.status == decode(answer.body)["error"]["code"] == 400


@ONLY_REAL
async def test_a_route_that_the_model_does_not_serve_fails_with_vllms_own_words(engine: Engine) -> None:
    _, answer = await called(engine, Call(task_id="t1", route="/v1/embeddings", body=b"{}", priority=1))
    assert answer.status == 404
