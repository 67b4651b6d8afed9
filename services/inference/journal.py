"""The token ids of a call, taken down between vLLM's engine and vLLM's OpenAI application; and put back there."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from typing import Any, Protocol

from services.inference.replay import Replay, unreplayable


class Journal:
    """Token ids of one call, in the order made, over all its choices."""

    def __init__(self, replay: Replay | None = None) -> None:
        self.replay = replay
        self.restored: Restored | None = None
        """Until the request that goes on with it is registered inside vLLM."""
        self._tokens: list[int] = []
        self._prompt: tuple[int, ...] | None = None

    def note(self, output: Any) -> None:
        """`output`: vLLM's RequestOutput, each with the tokens made since the one before."""
        if self._prompt is None:
            self._prompt = tuple(output.prompt_token_ids or ())
        for choice in output.outputs:
            self._tokens.extend(choice.token_ids)

    def take(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(tokens, prompt), each id once: what was noted since the last take."""
        taken = tuple(self._tokens), self._prompt or ()
        self._tokens.clear()
        if self._prompt:
            self._prompt = ()
        return taken


class Restored(Protocol):
    """vLLM's state of a request, as it was after the published tokens."""

    outputs: list[Any]
    """The RequestOutputs that led there."""
    finished: bool

    def take_over(self, state: Any) -> None:
        """Make `state`, of the request that goes on, this one."""


Restore = Callable[[str, Any, Replay], Restored]
"""From the id, the SamplingParams and the replay of a request."""

journal: ContextVar[Journal | None] = ContextVar("journal", default=None)
"""Of the call that the running code works for. vLLM's own tasks inherit it, so its request ids need no parsing."""


class JournallingEngine:
    """AsyncLLM as vLLM's application sees it."""

    def __init__(self, inner: Any, restore: Restore) -> None:
        self._inner, self._restore = inner, restore
        _hand_over_states(inner.output_processor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **more: Any
    ) -> AsyncGenerator[Any, None]:
        noting = journal.get()
        outputs = self._outputs(noting, prompt, sampling_params, request_id, more)
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                if noting is not None:
                    noting.note(output)
                yield output

    def _outputs(
        self, noting: Journal | None, prompt: Any, params: Any, request_id: str, more: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """None at all where the replay is refused: the call raises it."""

        def start(prompt: Any, params: Any) -> AsyncGenerator[Any, None]:
            outputs: AsyncGenerator[Any, None] = self._inner.generate(prompt, params, request_id, **more)
            return outputs

        if noting is None or noting.replay is None:
            return start(prompt, params)
        replay = noting.replay
        replay.refusal = _unlike(prompt, replay) or unreplayable(params)
        if replay.refusal:
            return _each([])
        if replay.untold and params.logprobs is not None:  # these cannot be restored, but the first token is made again
            return start(prompt, params)
        noting.restored = self._restore(request_id, params, replay)
        if noting.restored.finished:
            return _each(noting.restored.outputs)
        longer = {**prompt, "prompt_token_ids": [*replay.prompt, *replay.tokens]}
        rest_params = params.clone()
        if params.max_tokens is not None:
            rest_params.max_tokens = params.max_tokens - len(replay.tokens)
        return self._go_on(noting, replay, start(longer, rest_params))

    async def _go_on(
        self, noting: Journal, replay: Replay, rest: AsyncGenerator[Any, None]
    ) -> AsyncGenerator[Any, None]:
        """What led to the cut, then `rest`: its first output comes first, for a refusal must be seen before all else."""
        assert noting.restored is not None
        led = iter(noting.restored.outputs)
        async with contextlib.aclosing(rest):
            async for output in rest:
                if noting.restored is not None:
                    replay.refusal = "this vLLM registers requests in another way"
                    return
                for earlier in led:
                    yield earlier
                yield output


async def _each(outputs: list[Any]) -> AsyncGenerator[Any, None]:
    for output in outputs:
        yield output


def _unlike(prompt: Any, replay: Replay) -> str:
    if not isinstance(prompt, dict) or prompt.get("type", "token") != "token" or "prompt_token_ids" not in prompt:
        return "a prompt of more than tokens"
    return "" if tuple(prompt["prompt_token_ids"]) == replay.prompt else "the prompt has other token ids here"


def _hand_over_states(processor: Any) -> None:
    """Each request of vLLM that goes on with a restored state gets it in the moment it is registered.

    Later would be too late: its first tokens may come before `generate` of AsyncLLM returns here.
    """
    register = processor.add_request

    def add_request(request: Any, *args: Any, **kwargs: Any) -> None:
        register(request, *args, **kwargs)
        noting = journal.get()
        if noting is not None and noting.restored is not None:
            noting.restored.take_over(processor.request_states[request.request_id])
            noting.restored = None

    processor.add_request = add_request
