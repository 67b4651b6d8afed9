"""What stands between vLLM's engine and its application, on a stand-in for the engine: vLLM itself is in tests/contracts."""

from collections.abc import AsyncGenerator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from services.inference.engine import Call, Chunk
from services.inference.journal import Journal, JournallingEngine, journal
from services.inference.replay import Replay

CALL = Call(
    task_id="t",
    route="/v1/completions",
    body=b'{"prompt":"x"}',
    priority=1,
    published=(Chunk(b'{"created":1}', (4,), (1, 2)), Chunk(b"{}", (5, 6))),
)


class Params:
    """As vLLM's SamplingParams, as far as anything here looks at them."""

    __struct_fields__ = ("seed", "max_tokens", "logprobs")

    def __init__(self, max_tokens: int | None = 16, seed: int | None = None) -> None:
        self.max_tokens, self.seed, self.logprobs = max_tokens, seed, None

    def clone(self) -> "Params":
        return Params(self.max_tokens, self.seed)


class Restored:
    def __init__(self, finished: bool) -> None:
        self.outputs: list[Any] = [made(4), made(5, 6)]
        self.finished = finished
        self.given_to: Any = None

    def take_over(self, state: Any) -> None:
        self.given_to = state


class Inner:
    """Makes one token for each request, which it registers in its output processor."""

    def __init__(self, *, registers: bool = True) -> None:
        self.asked: list[tuple[list[int], int | None]] = []
        self.output_processor = SimpleNamespace(request_states={}, add_request=self._add)
        self._registers = registers

    def _add(self, request: Any) -> None:
        self.output_processor.request_states[request.request_id] = request

    async def generate(self, prompt: Any, params: Params, request_id: str, **_more: Any) -> AsyncGenerator[Any, None]:
        self.asked.append((prompt["prompt_token_ids"], params.max_tokens))
        if self._registers:
            self.output_processor.add_request(SimpleNamespace(request_id=request_id))
        yield made(7)


def made(*tokens: int) -> Any:
    return SimpleNamespace(prompt_token_ids=[1, 2], outputs=[SimpleNamespace(token_ids=tokens)])


@pytest.fixture
def noting() -> Iterator[Journal]:
    noting = Journal(Replay(CALL))
    token = journal.set(noting)
    yield noting
    journal.reset(token)


async def generate(inner: Inner, restored: Restored, params: Params | None = None) -> list[tuple[int, ...]]:
    engine = JournallingEngine(inner, lambda *_: restored)
    outputs = engine.generate({"prompt_token_ids": [1, 2]}, params or Params(), "r", priority=1)
    return [output.outputs[0].token_ids async for output in outputs]


def test_each_id_is_taken_once_and_the_prompt_with_the_first() -> None:
    noting = Journal()
    assert noting.take() == ((), ())
    noting.note(made(4))
    noting.note(made(5, 6))
    assert noting.take() == ((4, 5, 6), (1, 2))
    noting.note(made(7))
    assert noting.take() == ((7,), ())


async def test_the_published_tokens_go_before_those_that_follow_and_count_towards_the_limit(noting: Journal) -> None:
    inner, restored = Inner(), Restored(finished=False)
    assert await generate(inner, restored) == [(4,), (5, 6), (7,)]
    assert inner.asked == [([1, 2, 4, 5, 6], 13)]
    assert restored.given_to.request_id == "r"
    assert noting.take() == ((4, 5, 6, 7), (1, 2))


async def test_without_a_limit_there_is_none_for_the_rest(noting: Journal) -> None:
    inner = Inner()
    await generate(inner, Restored(finished=False), Params(max_tokens=None))
    assert inner.asked == [([1, 2, 4, 5, 6], None)]


async def test_an_answer_that_had_ended_is_only_told_again(noting: Journal) -> None:
    inner = Inner()
    assert await generate(inner, Restored(finished=True)) == [(4,), (5, 6)]
    assert inner.asked == []


async def test_a_request_that_cannot_go_on_makes_nothing_and_says_why(noting: Journal) -> None:
    inner = Inner()
    assert await generate(inner, Restored(finished=False), Params(seed=7)) == []
    assert inner.asked == []
    assert noting.replay is not None
    assert noting.replay.refusal == "seed"


async def test_an_engine_that_does_not_take_the_state_over_is_not_believed(noting: Journal) -> None:
    inner = Inner(registers=False)
    assert await generate(inner, Restored(finished=False)) == []
    assert noting.replay is not None
    assert noting.replay.refusal


async def test_a_call_that_begins_is_left_as_it_is() -> None:
    inner = Inner()
    assert await generate(inner, Restored(finished=False), Params(seed=7)) == [(7,)]
    assert inner.asked == [([1, 2], 16)]
