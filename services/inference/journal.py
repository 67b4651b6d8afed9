"""The token ids of a call, taken down between vLLM's engine and vLLM's OpenAI application."""

import contextlib
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from typing import Any


class Journal:
    """Token ids of one call, in the order made, over all its choices."""

    def __init__(self) -> None:
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


journal: ContextVar[Journal | None] = ContextVar("journal", default=None)
"""Of the call that the running code works for. vLLM's own tasks inherit it, so its request ids need no parsing."""


class JournallingEngine:
    """AsyncLLM as vLLM's application sees it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        noting = journal.get()
        async with contextlib.aclosing(self._inner.generate(*args, **kwargs)) as outputs:
            async for output in outputs:
                if noting is not None:
                    noting.note(output)
                yield output
