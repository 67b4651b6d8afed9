"""Real vLLM with the real model, door to door: the same answers as vLLM's own server gives, at temperature 0 in float32."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from shared.engine_options import Scalar
from shared.routes import RESPONSES as RESPONSES_ROUTE
from shared.routes import ROUTES
from tests.support.deployment import Deployment, deployment
from tests.support.vllm_server import MODEL, vllm_server
from tests.support.websocket import PushClient

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

OPTIONS: dict[str, Scalar] = {"dtype": "float32", "max-model-len": 1024, "kv-cache-memory-bytes": 256 * 1024 * 1024}
CONFIG = f"""
[pools.smol]
model = "{MODEL}"
[pools.smol.vllm]
options = {{ dtype = "float32", max-model-len = 1024, kv-cache-memory-bytes = {256 * 1024 * 1024} }}
"""
QUESTION = [{"role": "user", "content": "Name three rivers of Europe, and say one thing of each."}]
MASKED = {"id", "created", "created_at", "system_fingerprint"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("vllm"), "--engine", "vllm", config=CONFIG) as up:
        yield up


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_server(tmp_path_factory.mktemp("server"), OPTIONS) as url:
        yield url


@pytest.fixture
async def clients(running: Deployment, measure: str) -> AsyncIterator[list[openai.AsyncOpenAI]]:
    """Headrace's and vLLM's: the application differs in nothing but its base_url."""
    urls = [f"{running.http}/v1", f"{measure}/v1"]
    clients = [openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) for url in urls]
    yield clients
    for client in clients:
        await client.close()


def masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: masked(item) for key, item in value.items() if key not in MASKED}
    return [masked(item) for item in value] if isinstance(value, list) else value


CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "length": {"max_tokens": 5},
    "stop string": {"stop": ["."]},
    "logprobs": {"logprobs": True, "top_logprobs": 2, "max_tokens": 8},
    "two choices, sampled": {"n": 2, "temperature": 0.8, "seed": 7, "max_tokens": 8},
    "structured": {
        "max_tokens": 40,
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "river",
                "schema": {
                    "type": "object",
                    "properties": {"name": {"enum": ["Rhine", "Seine"]}},
                    "required": ["name"],
                },
            },
        },
    },
}


def close_to(value: Any) -> Any:
    """Logprobs agree to a rounding: the batch a token was made in may differ."""
    if isinstance(value, dict):
        return {key: close_to(item) for key, item in value.items()}
    if isinstance(value, list):
        return [close_to(item) for item in value]
    return pytest.approx(value, abs=1e-3) if isinstance(value, float) else value


@pytest.mark.parametrize("more", CHATS.values(), ids=CHATS)
async def test_a_chat_is_answered_as_vllms_own_server_answers_it(
    clients: list[openai.AsyncOpenAI], more: dict[str, Any]
) -> None:
    request = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 24, **more}
    ours, theirs = [masked((await c.chat.completions.create(**request)).model_dump()) for c in clients]
    assert ours == close_to(theirs)


@pytest.mark.parametrize("more", CHATS.values(), ids=CHATS)
async def test_a_chat_is_streamed_as_vllms_own_server_streams_it(
    clients: list[openai.AsyncOpenAI], more: dict[str, Any]
) -> None:
    request = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 24, "stream": True, **more}
    request["stream_options"] = {"include_usage": True}
    ours, theirs = [
        joined([chunk.model_dump() async for chunk in await client.chat.completions.create(**request)])
        for client in clients
    ]
    assert ours == close_to(theirs)


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a stream adds up to: vLLM may cut the same text into other pieces when it is busy."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            whole = choices.setdefault(choice["index"], {"text": "", "logprobs": [], "finish_reason": None})
            whole["text"] += choice["delta"]["content"] or ""
            whole["logprobs"] += (choice["logprobs"] or {}).get("content") or []
            whole["finish_reason"] = choice["finish_reason"] or whole["finish_reason"]
    return {"choices": choices, "usage": masked(chunks[-1]["usage"]), "model": chunks[0]["model"]}


async def test_completions_are_the_same_whole_and_streamed(clients: list[openai.AsyncOpenAI]) -> None:
    request: dict[str, Any] = {"model": MODEL, "prompt": "The river flows", "temperature": 0, "max_tokens": 16}
    ours, theirs = [masked((await client.completions.create(**request)).model_dump()) for client in clients]
    stream = await clients[0].completions.create(**request, stream=True)
    text = "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])
    assert ours == theirs
    assert text == theirs["choices"][0]["text"]


FAULTS: dict[str, dict[str, Any]] = {
    "too long a context": {"messages": [{"role": "user", "content": "word " * 2000}]},
    "more tokens than fit": {"max_tokens": 5000},
    "wrong type": {"temperature": "hot"},
    "negative temperature": {"temperature": -1},
    "no messages": {"messages": None},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_refusal_is_vllms_own(running: Deployment, measure: str, fault: dict[str, Any], stream: bool) -> None:
    body = {"model": MODEL, "messages": QUESTION, "stream": stream, **fault}
    async with httpx.AsyncClient(timeout=60) as client:
        ours, theirs = [await client.post(f"{url}/v1/chat/completions", json=body) for url in (running.http, measure)]
    assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json())
    assert ours.status_code == 400


async def test_every_token_comes_over_the_websocket_once_and_the_text_is_the_stored_result(running: Deployment) -> None:
    body = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 48, "stream": True}
    async with httpx.AsyncClient(base_url=running.http, timeout=60) as client:
        task = (await client.post("/v1/tasks", json={"body": body})).json()["id"]
        async with PushClient(running.ws) as first:
            await first.follow(task)
            while first.tasks[task].n < 8:
                await first.receive()
        async with PushClient(running.ws) as second:  # the link broke; back with the cursor
            second.tasks = first.tasks
            await second.follow(task)
            await second.until_end(task)
        stored = (await client.get(f"/v1/tasks/{task}")).json()
    assert second.tasks[task].text == stored["result"]["choices"][0]["message"]["content"]
    assert second.tasks[task].n > 8


async def test_a_subscriber_may_have_the_engines_chunks_as_made(running: Deployment) -> None:
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 6, "stream": True, "logprobs": True}
    async with httpx.AsyncClient(base_url=running.http, timeout=60) as client:
        task = (await client.post("/v1/tasks", json={"body": body})).json()["id"]
        async with PushClient(running.ws) as page:
            await page.follow(task, form="chunks")
            await page.until_end(task)
    made = page.tasks[task].chunks
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in made)
    assert sum(len((chunk["choices"][0]["logprobs"] or {}).get("content") or []) for chunk in made) == 6


# -- other routes


RESPONSES: dict[str, dict[str, Any]] = {
    "plain": {"input": "Name three rivers of Europe."},
    "items, instructions, cut": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Name a river."}]}],
        "instructions": "Be brief.",
        "max_output_tokens": 5,
    },
    "structured": {
        "input": "Name a river.",
        "text": {
            "format": {
                "type": "json_schema",
                "name": "river",
                "schema": {
                    "type": "object",
                    "properties": {"name": {"enum": ["Rhine", "Seine"]}},
                    "required": ["name"],
                },
            }
        },
    },
}


@pytest.mark.parametrize("asked", RESPONSES.values(), ids=RESPONSES)
async def test_a_response_is_vllms_own_but_for_its_id(clients: list[openai.AsyncOpenAI], asked: dict[str, Any]) -> None:
    request = {"model": MODEL, "temperature": 0, "max_output_tokens": 24, **asked}
    made = [await client.responses.create(**request) for client in clients]
    ours, theirs = [masked(response.model_dump()) for response in made]
    assert ours == close_to(theirs)
    assert made[0].id.startswith("resp_smol.")
    assert (await clients[0].responses.retrieve(made[0].id)).model_dump() == made[0].model_dump()


@pytest.mark.parametrize("asked", RESPONSES.values(), ids=RESPONSES)
async def test_a_response_is_streamed_as_vllms_own_server_streams_it(
    clients: list[openai.AsyncOpenAI], asked: dict[str, Any]
) -> None:
    request = {"model": MODEL, "temperature": 0, "max_output_tokens": 24, **asked}
    ours, theirs = [
        [event async for event in await client.responses.create(**request, stream=True)] for client in clients
    ]
    assert kinds(ours) == kinds(theirs)
    assert text_in(ours) == text_in(theirs) != ""
    assert masked(ours[-1].response.model_dump()) == close_to(masked(theirs[-1].response.model_dump()))
    assert [event.sequence_number for event in ours] == list(range(len(ours)))


def kinds(events: list[Any]) -> list[str]:
    """Of events that follow one another, each once: the same text may come in other pieces."""
    found = [event.type for event in events]
    return [kind for kind, before in zip(found, [None, *found], strict=False) if kind != before]


def text_in(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


async def test_a_response_that_follows_another_is_asked_with_all_that_was_said(
    clients: list[openai.AsyncOpenAI],
) -> None:
    headrace, vllm = clients
    request: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_output_tokens": 16}
    first = await headrace.responses.create(**request, input="Name a river.", background=True)
    while first.status in ("queued", "in_progress"):
        first = await headrace.responses.retrieve(first.id)
    assert first.status in ("completed", "incomplete")
    ours = await headrace.responses.create(**request, input="And a lake?", previous_response_id=first.id)
    said: Any = [
        {"role": "user", "content": "Name a river."},
        *first.output,
        {"role": "user", "content": "And a lake?"},
    ]
    theirs = await vllm.responses.create(**request, input=said)
    assert (ours.output_text, ours.previous_response_id) == (theirs.output_text, first.id)
    assert ours.usage == theirs.usage


MESSAGE = {"model": MODEL, "max_tokens": 16, "temperature": 0, "messages": QUESTION, "system": "Be brief."}


async def test_a_message_is_vllms_own_whole_and_streamed(running: Deployment, measure: str) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        for path, body in (
            ("/v1/messages", MESSAGE),
            ("/v1/messages/count_tokens", {name: MESSAGE[name] for name in ("model", "messages", "system")}),
            ("/tokenize", {"model": MODEL, "prompt": "The river flows"}),
            ("/detokenize", {"model": MODEL, "tokens": [1, 2, 3]}),
        ):
            ours, theirs = [await client.post(f"{url}{path}", json=body) for url in (running.http, measure)]
            assert ours.status_code == theirs.status_code == 200, ours.text
            assert masked(ours.json()) == masked(theirs.json())
        asked = {**MESSAGE, "stream": True}
        ours, theirs = [await client.post(f"{url}/v1/messages", json=asked) for url in (running.http, measure)]
    assert told(ours.text) == told(theirs.text)


def told(stream: str) -> tuple[list[str], str, Any]:
    """Names of the events that differ from the one before, the text, and how it ended."""
    events = [frame.split("\n") for frame in stream.strip().split("\n\n")]
    names = [name.removeprefix("event: ") for name, _ in events]
    data = [json.loads(line.removeprefix("data: ")) for _, line in events]
    assert names == [event["type"] for event in data]
    text = "".join(event["delta"].get("text", "") for event in data if event["type"] == "content_block_delta")
    return [name for name, before in zip(names, ["", *names], strict=False) if name != before], text, masked(data[-2])


@pytest.mark.parametrize("route", [route for route in ROUTES if route != RESPONSES_ROUTE])
async def test_what_vllm_does_not_serve_it_refuses_in_its_own_words(
    running: Deployment, measure: str, route: str
) -> None:
    """Each route with a body that lacks all but the model."""
    async with httpx.AsyncClient(timeout=60) as client:
        ours, theirs = [await client.post(f"{url}{route}", json={"model": MODEL}) for url in (running.http, measure)]
    assert ours.status_code == theirs.status_code
    if "error" in theirs.json():
        assert ours.json() == theirs.json()
