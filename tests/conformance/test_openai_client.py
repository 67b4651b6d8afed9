"""The `openai` package, unmodified, over the routes that it knows: what it hands to an application is the same from both."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.conformance import ADAPTER, EMBEDDER, MARKS, MODEL
from tests.conformance.calls import CHAT_BASE, COMPLETION_BASE, NAMED, RESPONSE_BASE, RIVER, TOOLS
from tests.conformance.comparing import close_to, masked
from tests.conformance.conftest import Urls

pytestmark = MARKS

Asking = Callable[[openai.AsyncOpenAI], Awaitable[Any]]
CHAT: dict[str, Any] = dict(CHAT_BASE)
RESPONSE: dict[str, Any] = dict(RESPONSE_BASE)
COMPLETION: dict[str, Any] = dict(COMPLETION_BASE)
SCHEMA = {"type": "json_schema", "name": "river", "schema": RIVER}


class River(BaseModel):
    """What a structured answer is read into."""

    name: str


@pytest.fixture
async def clients(urls: Urls) -> AsyncIterator[list[openai.AsyncOpenAI]]:
    """Of Headrace, of vLLM's server, and of the one that embeds: the application differs in nothing but its base_url."""
    bases = (urls.headrace, urls.vllm, urls.vllm_embedder)
    made = [openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) for url in bases]
    yield made
    for client in made:
        await client.close()


def plain(answer: Any) -> Any:
    """As data, without what is drawn."""
    return masked(answer.model_dump(warnings=False)) if isinstance(answer, BaseModel) else answer


async def streamed_chat(client: openai.AsyncOpenAI, **more: Any) -> Any:
    """By the client's own helper, which puts the chunks together."""
    async with client.chat.completions.stream(**CHAT, **more) as stream:
        kinds = [event.type async for event in stream]
        return [sorted(set(kinds)), plain(stream.current_completion_snapshot)]


async def streamed_completion(client: openai.AsyncOpenAI) -> Any:
    chunks = [chunk async for chunk in await client.completions.create(**COMPLETION, stream=True)]
    return ["".join(chunk.choices[0].text for chunk in chunks), chunks[-1].choices[0].finish_reason]


async def streamed_response(client: openai.AsyncOpenAI) -> Any:
    async with client.responses.stream(**RESPONSE) as stream:
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        return [list(dict.fromkeys(event.type for event in events)), plain(await stream.get_final_response())]


async def raw_chat(client: openai.AsyncOpenAI) -> Any:
    """The answer with its HTTP headers."""
    raw = await client.chat.completions.with_raw_response.create(**CHAT)
    return [raw.status_code, raw.headers["content-type"], plain(raw.parse())]


ASKED: dict[str, Asking] = {
    "chat": lambda c: c.chat.completions.create(**CHAT),
    "chat with logprobs": lambda c: c.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2),
    "chat with two choices": lambda c: c.chat.completions.create(**{**CHAT, "temperature": 0.8}, n=2, seed=5),
    "chat with a tool": lambda c: c.chat.completions.create(
        **{**CHAT, "max_tokens": 40, "tools": TOOLS, "tool_choice": NAMED}
    ),
    "chat with a field of vLLM": lambda c: c.chat.completions.create(**{**CHAT, "extra_body": {"top_k": 1}}),
    "chat with an adapter": lambda c: c.chat.completions.create(**{**CHAT, "model": ADAPTER}),
    "chat with its headers": raw_chat,
    "parsed chat": lambda c: c.chat.completions.parse(**{**CHAT, "max_tokens": 40}, response_format=River),
    "streamed chat": streamed_chat,
    "streamed chat with usage": lambda c: streamed_chat(c, stream_options={"include_usage": True}),
    "streamed chat with logprobs": lambda c: streamed_chat(c, logprobs=True, top_logprobs=1),
    "completion": lambda c: c.completions.create(**COMPLETION),
    "completion with echo": lambda c: c.completions.create(**COMPLETION, echo=True, logprobs=1),
    "streamed completion": streamed_completion,
    "response": lambda c: c.responses.create(**RESPONSE),
    "response with a schema": lambda c: c.responses.create(
        **{**RESPONSE, "max_output_tokens": 40, "text": {"format": SCHEMA}}
    ),
    "parsed response": lambda c: c.responses.parse(**{**RESPONSE, "max_output_tokens": 40}, text_format=River),
    "streamed response": streamed_response,
}
EMBEDDED: dict[str, Asking] = {
    "embedding": lambda c: c.embeddings.create(model=EMBEDDER, input="The river flows"),
    "embeddings": lambda c: c.embeddings.create(model=EMBEDDER, input=["The river", "A lake"]),
    "embedding in floats": lambda c: c.embeddings.create(model=EMBEDDER, input="The river", encoding_format="float"),
}


async def same(ours: openai.AsyncOpenAI, theirs: openai.AsyncOpenAI, asking: Asking) -> None:
    assert plain(await asking(ours)) == close_to(plain(await asking(theirs)))


@pytest.mark.parametrize("asking", ASKED.values(), ids=ASKED)
async def test_the_application_gets_the_same(clients: list[openai.AsyncOpenAI], asking: Asking) -> None:
    await same(clients[0], clients[1], asking)


@pytest.mark.parametrize("asking", EMBEDDED.values(), ids=EMBEDDED)
async def test_the_application_gets_the_same_vectors(clients: list[openai.AsyncOpenAI], asking: Asking) -> None:
    await same(clients[0], clients[2], asking)


REFUSED: dict[str, Asking] = {
    "a field of the wrong type": lambda c: c.chat.completions.create(**{**CHAT, "temperature": "hot"}),
    "a prompt too long": lambda c: c.chat.completions.create(
        **{**CHAT, "messages": [{"role": "user", "content": "word " * 2000}]}
    ),
    "an unknown model": lambda c: c.chat.completions.create(**{**CHAT, "model": "no-such-model"}),
    "no prompt": lambda c: c.completions.create(**{**COMPLETION, "prompt": None}),
    "a response of an unknown model": lambda c: c.responses.create(**{**RESPONSE, "model": "no-such-model"}),
    "an unknown response": lambda c: c.responses.retrieve("resp_none"),
    "speech": lambda c: c.audio.speech.create(model=MODEL, voice="alloy", input="x"),
    "an image": lambda c: c.images.generate(model=MODEL, prompt="x"),
    "a transcription": lambda c: c.audio.transcriptions.create(model=MODEL, file=("a.wav", b"RIFF")),
    "moderation": lambda c: c.moderations.create(model=MODEL, input="x"),
    "an embedding of a model that makes none": lambda c: c.embeddings.create(model=MODEL, input="x"),
}


@pytest.mark.parametrize("asking", REFUSED.values(), ids=REFUSED)
async def test_the_application_gets_the_same_exception(clients: list[openai.AsyncOpenAI], asking: Asking) -> None:
    raised = []
    for client in clients[:2]:
        with pytest.raises(openai.APIStatusError) as refusal:
            await asking(client)
        raised.append((type(refusal.value), refusal.value.status_code, refusal.value.type))
    assert raised[0] == raised[1]


async def test_models_are_listed_and_found_by_name(clients: list[openai.AsyncOpenAI]) -> None:
    ours, theirs = [{model.id async for model in client.models.list()} for client in clients[:2]]
    assert ours == theirs | {EMBEDDER}
    assert (await clients[0].models.retrieve(MODEL)).id == MODEL


async def test_a_response_is_kept_until_it_is_deleted(clients: list[openai.AsyncOpenAI]) -> None:
    headrace = clients[0]
    made = await headrace.responses.create(**RESPONSE)
    assert made.id.startswith("resp_smol.")
    assert (await headrace.responses.retrieve(made.id)).model_dump() == made.model_dump()
    await headrace.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await headrace.responses.retrieve(made.id)


async def test_a_response_that_follows_another_is_asked_with_all_that_was_said(
    clients: list[openai.AsyncOpenAI],
) -> None:
    headrace, vllm, _ = clients
    first = await headrace.responses.create(**RESPONSE, background=True)
    while first.status in ("queued", "in_progress"):
        first = await headrace.responses.retrieve(first.id)
    assert first.status in ("completed", "incomplete")
    more = {**RESPONSE, "input": "And a lake?"}
    ours = await headrace.responses.create(**more, previous_response_id=first.id)
    turn = {"role": "user", "content": "And a lake?"}
    said: Any = [{"role": "user", "content": RESPONSE["input"]}, *first.output, turn]
    theirs = await vllm.responses.create(**{**more, "input": said})
    assert (ours.output_text, ours.previous_response_id) == (theirs.output_text, first.id)
    assert ours.usage == theirs.usage
