"""What is compared and swallowed when an answer goes on, without an engine; and which requests can go on at all."""

from collections.abc import AsyncGenerator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from services.inference.engine import Answer, Call, CannotResume, Chunk
from services.inference.replay import EXACT, Replay, unreplayable
from shared.request import CHAT, COMPLETIONS

STREAMED = Answer(status=200, body=b"")


def chunk(
    text: str, *tokens: int, created: int = 1, logprob: float | None = None, prompt: tuple[int, ...] = ()
) -> Chunk:
    choice = {"index": 0, "text": text, "logprobs": logprob}
    return Chunk(msgspec.json.encode({"id": "cmpl-t", "created": created, "choices": [choice]}), tokens, prompt)


PUBLISHED = (chunk("to", 4, prompt=(1, 2)), chunk("", 5), chunk(" be", 6, 7))


def call(*published: Chunk, route: str = COMPLETIONS, **body: Any) -> Call:
    return Call(task_id="t", route=route, body=msgspec.json.encode(body), priority=1, published=published)


async def following(replay: Replay, *pieces: Chunk | Answer) -> list[Chunk | Answer]:
    async def made() -> AsyncGenerator[Chunk | Answer, None]:
        for piece in pieces:
            yield piece

    return [piece async for piece in replay.following(made())]


async def test_what_was_published_is_swallowed_and_the_rest_carries_its_date() -> None:
    again = (chunk("to", 4, created=9, prompt=(1, 2)), chunk("", 5, created=9), chunk(" be", 6, 7, created=9))
    rest = (chunk(' or "created":9', 8, created=9), STREAMED)
    replay = Replay(call(*PUBLISHED, prompt="x"))
    assert await following(replay, *again, *rest) == [chunk(' or "created":9', 8), STREAMED]
    assert (replay.prompt, replay.tokens) == ((1, 2), [4, 5, 6, 7])


async def test_log_probabilities_of_what_is_swallowed_are_not_compared() -> None:
    replay = Replay(call(chunk("to", 4, logprob=-0.5, prompt=(1, 2)), prompt="x"))
    assert await following(replay, chunk("to", 4, logprob=0.0), STREAMED) == [STREAMED]


@pytest.mark.parametrize(
    "again",
    [
        chunk("To", 4),
        chunk("to", 3),
        Chunk(b"{", (4,)),
        STREAMED,
        Answer(status=400, body=b""),
        Answer(status=500, body=b""),
    ],
    ids=["other text", "other tokens", "no JSON", "too few", "refused", "failed"],
)
async def test_another_answer_than_the_published_one_does_not_go_on(again: Chunk | Answer) -> None:
    with pytest.raises(CannotResume):
        await following(Replay(call(*PUBLISHED, prompt="x")), again, STREAMED)


@pytest.mark.parametrize("status", [429, 503])
async def test_an_engine_that_is_busy_now_may_go_on_later(status: int) -> None:
    busy = Answer(status=status, body=b"{}")
    assert await following(Replay(call(*PUBLISHED, prompt="x")), busy) == [busy]


async def test_the_reason_of_a_refusal_is_told() -> None:
    replay = Replay(call(*PUBLISHED, prompt="x"))
    replay.refusal = "seed"
    with pytest.raises(CannotResume, match="seed"):
        await following(replay, STREAMED)


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (call(*PUBLISHED, route="/v1/responses"), "answers of /v1/responses are not continued"),
        (call(*PUBLISHED, prompt=["a", "b"]), "several prompts"),
        (call(*PUBLISHED, prompt=[[1], [2]]), "several prompts"),
        (call(*PUBLISHED, prompt="a", echo=True), "echo"),
        (call(*PUBLISHED, prompt="a", echo="x"), "the body cannot be read"),
        (call(*PUBLISHED[1:], prompt="a"), "the ids of the prompt were not published"),
        (call(chunk("a", prompt=(1,)), prompt="a"), "no token ids were published"),
        (call(Chunk(b"{}", (4,), (1,)), prompt="a"), "the first chunk published is none of vLLM's"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_go_on_is_known_before_the_engine_is_asked(refused: Call, reason: str) -> None:
    with pytest.raises(CannotResume, match=reason):
        Replay(refused)


@pytest.mark.parametrize("prompt", ["a", [1, 2, 3], ["a"], [[1, 2]]])
def test_one_prompt_may_be_given_in_any_form(prompt: Any) -> None:
    Replay(call(*PUBLISHED, prompt=prompt))


def test_only_the_first_chunk_of_a_chat_does_not_tell_of_its_token() -> None:
    assert Replay(call(PUBLISHED[0], route=CHAT)).untold
    assert not Replay(call(*PUBLISHED[:2], route=CHAT)).untold
    assert not Replay(call(PUBLISHED[0], prompt="a")).untold


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "changed",
    [
        {"n": 2},
        {"seed": 0},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -0.5},
        {"min_tokens": 3},
        {"bad_words": ["no"]},
        {"prompt_logprobs": 1},
        {"logprob_token_ids": [5]},
        {"thinking_token_budget": 10},
        {"extra_args": {"kv_transfer_params": {}}},
        {"structured_outputs": SimpleNamespace(json={}, choice=None)},
        {"repetition_detection": SimpleNamespace(max_pattern_size=3)},
        {"trace_decode_token_ids": [1]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_parameter_that_knows_where_the_prompt_ended_is_not_replayed(changed: dict[str, Any]) -> None:
    params = parameters(max_tokens=9)
    assert unreplayable(params) == ""
    for name, value in changed.items():
        setattr(params, name, value)
    assert [unreplayable(params)] == list(changed)


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_a_parameter_that_does_not_is_replayed() -> None:
    asked = parameters(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.3, stop=["x"], ignore_eos=True,
                       stop_token_ids=[3], logprobs=2, logit_bias={5: 1.0}, allowed_token_ids=[5, 6], stream_interval=4,
                       include_stop_str_in_output=True, skip_special_tokens=False, max_tokens=None)  # fmt: skip
    assert unreplayable(asked) == ""
    assert set(asked.__struct_fields__) >= EXACT, "names that vLLM does not have protect nothing"


def parameters(**given: Any) -> Any:
    return import_module("vllm.sampling_params").SamplingParams(**given)
