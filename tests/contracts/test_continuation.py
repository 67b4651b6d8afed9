"""A streamed answer goes on behind any chunk on any engine as if one attempt had made it all; or it is refused at once."""

import asyncio
from typing import Any

import msgspec
import pytest

from services.inference.engine import Call, CannotResume, Chunk, Engine
from shared.request import CHAT, COMPLETIONS
from tests.support.engines import IN_PROCESS, MODEL, ONLY_REAL, called, hello
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.asyncio(loop_scope="package"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's imports warn of their own deprecations
    pytest.mark.timeout(180),
]

RIVERS = hello("Name three rivers of Europe, and say one thing of each.")
WORLD = "Привет мир 🌍! Привет мир 🌍! Привет мир 🌍!"
"""The model repeats it. A letter takes one or two tokens, the globe three, none of which is a character."""
CALL = """<tool_call>
{"name": "weather", "arguments": {"city": "Paris"}}
</tool_call>"""
WEATHER = [*hello("Weather?"), {"role": "assistant", "content": CALL}] * 3 + hello("Weather?")
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
Asked = tuple[str, dict[str, Any]]


def call_for(asked: Asked, published: list[Chunk]) -> Call:
    route, body = asked
    usual = {"model": MODEL, "temperature": 0, "stream": True, "max_tokens": 16}
    return Call(
        task_id="t1", route=route, body=msgspec.json.encode({**usual, **body}), priority=1, published=tuple(published)
    )


def cuts(chunks: list[Chunk], count: int) -> list[int]:
    """Spread over the answer, with its first and its last chunk among them."""
    return sorted({1 + round(i * (len(chunks) - 1) / (count - 1)) for i in range(count)})


def told(chunks: list[Chunk]) -> dict[str, Any]:
    """What a stream adds up to; a busy engine may put two tokens into one chunk."""
    frames = [msgspec.json.decode(chunk.data) for chunk in chunks]
    choices = [choice for frame in frames for choice in frame["choices"]]
    deltas = [choice["delta"] if "delta" in choice else {"content": choice["text"]} for choice in choices]
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls") or ()]
    return {
        "heads": {(frame["id"], frame["object"], frame["created"], frame["model"]) for frame in frames},
        "roles": [delta["role"] for delta in deltas if "role" in delta],
        "text": "".join(delta.get("content") or "" for delta in deltas),
        "calls": "".join(call.get("name", "") + call.get("arguments", "") for call in calls),
        "ends": [(choice["finish_reason"], choice.get("stop_reason")) for choice in choices if choice["finish_reason"]],
        "usage": [frame["usage"] for frame in frames if not frame["choices"]],
        "logprobs": [token for choice in choices for token in _each_token(choice["logprobs"] or {})],
        "ids": [token for chunk in chunks for token in chunk.tokens],
        "prompt": [chunk.prompt for chunk in chunks if chunk.prompt],
    }


def _each_token(logprobs: dict[str, list[Any]]) -> list[Any]:
    """A chat has a list of tokens, a completion a list of each of their properties."""
    return (
        list(logprobs["content"])
        if "content" in logprobs
        else [list(token) for token in zip(*logprobs.values(), strict=True)]
    )


def near(value: Any) -> Any:
    """Logprobs of the first token behind a cut are computed as part of a prompt, which rounds otherwise."""
    if isinstance(value, dict):
        return {key: near(item) for key, item in value.items()}
    if isinstance(value, list):
        return [near(item) for item in value]
    return pytest.approx(value, abs=1e-3) if isinstance(value, float) else value


USAGE = {"stream_options": {"include_usage": True}}
ALL: dict[str, Asked] = {
    "chat": (CHAT, {"messages": RIVERS, **USAGE}),
    "completion": (COMPLETIONS, {"prompt": "one two three four five six seven eight nine ten", **USAGE}),
    "one token": (CHAT, {"messages": RIVERS, "max_tokens": 1, **USAGE}),
}
OF_VLLM: dict[str, Asked] = {
    "characters of several tokens": (COMPLETIONS, {"prompt": WORLD, **USAGE}),
    "their logprobs": (COMPLETIONS, {"prompt": WORLD, "logprobs": 2}),
    "a stop string": (COMPLETIONS, {"prompt": WORLD, "stop": ["no such", " 🌍! При"], **USAGE}),
}
RARE: dict[str, Asked] = {
    "logprobs of a chat": (CHAT, {"messages": RIVERS, "logprobs": True, "top_logprobs": 2}),
    "a stop string that is kept": (
        COMPLETIONS,
        {"prompt": WORLD, "stop": "! При", "include_stop_str_in_output": True},
    ),
    "a stop token": (CHAT, {"messages": hello("What is the capital of France?"), "stop_token_ids": [282], **USAGE}),
    "nothing but an end": (CHAT, {"messages": RIVERS, "allowed_token_ids": [2], **USAGE}),
    "an end that is ignored": (
        CHAT,
        {"messages": RIVERS, "allowed_token_ids": [2], "ignore_eos": True, "max_tokens": 5},
    ),
    "a repetition penalty": (CHAT, {"messages": RIVERS, "repetition_penalty": 1.3}),
    "usage in every chunk": (CHAT, {"messages": RIVERS, "stream_options": {"continuous_usage_stats": True, **USAGE}}),
    "several tokens a chunk": (COMPLETIONS, {"prompt": WORLD, "stream_interval": 3, **USAGE}),
    "ids in every chunk": (CHAT, {"messages": RIVERS, "return_token_ids": True}),
    "a tool call": (CHAT, {"messages": WEATHER, "tools": TOOLS, "max_tokens": 40, **USAGE}),
    "all that fits": (COMPLETIONS, {"prompt": WORLD + " мир" * 200, "truncate_prompt_tokens": 244, "max_tokens": 12}),
}


async def check(engine: Engine, asked: Asked, count: int) -> None:
    chunks, end = await called(engine, call_for(asked, []))
    assert (end.status, end.body) == (200, b"")
    assert told(chunks)["calls"] or "tools" not in asked[1], "the model has called the tool"
    assert told(chunks)["ends"][0][1] or not asked[1].keys() & {"stop", "stop_token_ids"}, "something has stopped it"
    places = cuts(chunks, count)
    ends = await asyncio.gather(*(called(engine, call_for(asked, chunks[:cut])) for cut in places))
    for cut, (more, end) in zip(places, ends, strict=True):
        assert (end.status, end.body) == (200, b"")
        assert told(chunks[:cut] + more) == near(told(chunks)), f"behind {cut} of {len(chunks)} chunks"


@IN_PROCESS
@pytest.mark.parametrize("asked", ALL.values(), ids=ALL)
async def test_an_answer_goes_on_behind_any_of_its_chunks(engine: Engine, asked: Asked) -> None:
    await check(engine, asked, 10)


@ONLY_REAL
@pytest.mark.parametrize("asked", OF_VLLM.values(), ids=OF_VLLM)
async def test_a_cut_in_a_character_or_in_a_stop_string_leaves_no_trace(engine: Engine, asked: Asked) -> None:
    await check(engine, asked, 10)


@ONLY_REAL
@pytest.mark.parametrize("asked", RARE.values(), ids=RARE)
async def test_a_continuation_differs_in_nothing_that_was_asked_for(engine: Engine, asked: Asked) -> None:
    await check(engine, asked, 3)


@IN_PROCESS
async def test_a_continuation_that_is_closed_frees_its_slot(engine: Engine) -> None:
    asked = (COMPLETIONS, {"prompt": "to be or not " * 15, "max_tokens": 60, "ignore_eos": True})
    first = engine.run(call_for(asked, []))
    chunk = await anext(first)
    await first.aclose()
    assert isinstance(chunk, Chunk)
    second = engine.run(call_for(asked, [chunk]))
    await anext(second)
    await second.aclose()
    await wait_until(lambda: engine.capacity().running == 0, "none runs")


@IN_PROCESS
async def test_chunks_of_another_answer_are_not_continued(engine: Engine) -> None:
    chunks, _ = await called(engine, call_for(ALL["chat"], []))
    other = (CHAT, {"messages": hello("Which river is the longest?")})
    with pytest.raises(CannotResume):
        await called(engine, call_for(other, chunks[:3]))
    changed = [*chunks[:2], Chunk(chunks[2].data.replace(b'"content":"', b'"content":"x'), chunks[2].tokens)]
    with pytest.raises(CannotResume):
        await called(engine, call_for(ALL["chat"], changed))


REFUSED: dict[str, Asked] = {
    "several answers": (CHAT, {"messages": RIVERS, "n": 2, "temperature": 1}),
    "several prompts": (COMPLETIONS, {"prompt": ["one", "two"]}),
    "the prompt again": (COMPLETIONS, {"prompt": "one", "echo": True}),
    "a seed": (CHAT, {"messages": RIVERS, "seed": 7}),
    "a presence penalty": (CHAT, {"messages": RIVERS, "presence_penalty": 1}),
    "a form": (CHAT, {"messages": RIVERS, "response_format": {"type": "json_object"}}),
    "a choice": (CHAT, {"messages": RIVERS, "structured_outputs": {"choice": ["Rhine", "Seine"]}}),
}


@ONLY_REAL
@pytest.mark.parametrize("asked", REFUSED.values(), ids=REFUSED)
async def test_what_would_not_go_on_alike_is_refused(engine: Engine, asked: Asked) -> None:
    route, body = asked
    short = (route, {**body, "max_tokens": 3})
    chunks, _ = await called(engine, call_for(short, []))
    with pytest.raises(CannotResume):
        await called(engine, call_for(short, chunks[:2]))


@pytest.mark.parametrize("engine", ["openai", "python"], indirect=True)
async def test_what_tells_no_ids_is_never_asked_to_go_on(engine: Engine) -> None:
    """There is nothing to go on from: the worker has the answer made anew."""
    chunks, _ = await called(engine, call_for(ALL["chat"], []))
    steps = engine.capacity().steps
    with pytest.raises(CannotResume):
        await called(engine, call_for(ALL["chat"], chunks[:3]))
    assert engine.capacity().steps == steps
