"""Going on behind the chunks that another worker published: what is checked, and what is swallowed.

The token ids of the published chunks go through vLLM's application once more, so that it has the state (text, parsers,
usage, log probabilities) that it had. The chunks it makes of them are compared with the published ones and dropped; those
that follow are the continuation. Whatever does not come out as published is a CannotResume, never a wrong text.
"""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from msgspec import Struct

from services.inference.continuing import CREATED, dated, same
from services.inference.engine import Answer, Call, CannotResume, Chunk
from shared.errors import UNDECODABLE
from shared.request import CHAT, COMPLETIONS

EXACT = {
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logit_bias", "allowed_token_ids",
    "max_tokens", "ignore_eos", "stop", "stop_token_ids", "include_stop_str_in_output",
    "logprobs", "flat_logprobs", "detokenize", "skip_special_tokens", "spaces_between_special_tokens",
    "output_kind", "stream_interval", "skip_clone", "output_text_buffer_length",
}  # fmt: skip
"""Sampling parameters whose effect on a token depends on all tokens before it alike, or on none. The others know where the
prompt ended (presence and frequency penalty, min_tokens, bad_words, thinking_token_budget, repetition_detection), keep a
state of their own (seed, structured_outputs, extra_args), or ask for more than one answer (n, prompt_logprobs)."""


class _Body(Struct):
    prompt: Any = None
    echo: bool | None = False


class Replay:
    """Of one call with published chunks."""

    def __init__(self, call: Call) -> None:
        """Raises: CannotResume."""
        if reason := _unreplayable_call(call):
            raise CannotResume(reason)
        self.prompt = call.published[0].prompt
        self.groups = [chunk.tokens for chunk in call.published if chunk.tokens]
        """The ids of each step that made a chunk."""
        self.untold = call.route == CHAT and len(call.published) == 1
        """The first chunk of a chat has the first token's id, but goes out before the one that tells of the token."""
        self.refusal = ""
        """Why the engine did not go on, where it found a reason."""
        self._published = call.published

    @property
    def tokens(self) -> list[int]:
        return [token for group in self.groups for token in group]

    async def following(self, pieces: AsyncGenerator[Chunk | Answer, None]) -> AsyncGenerator[Chunk | Answer, None]:
        """What of `pieces`, made from the start, follows the published chunks. Raises: CannotResume."""
        waiting = list(reversed(self._published))
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, Answer):
                    if waiting and (self.refusal or piece.status not in (429, 503)):
                        raise CannotResume(self.refusal or f"answered {piece.status} before the last published chunk")
                    yield piece
                    continue
                if not waiting:
                    yield dated(piece, self._published[0])
                elif not same(waiting.pop(), piece):
                    raise CannotResume(self.refusal or "the tokens published do not make the chunks published")


def unreplayable(params: Any) -> str:
    """The first of vLLM's SamplingParams in force under which a continuation would differ, or nothing."""
    usual = type(params)()
    for name in params.__struct_fields__:
        if name not in EXACT and not name.startswith("_") and getattr(params, name) != getattr(usual, name):
            return str(name)
    return ""


def _unreplayable_call(call: Call) -> str:
    if call.route not in (CHAT, COMPLETIONS):
        return f"answers of {call.route} are not continued"
    try:
        body = msgspec.json.decode(call.body, type=_Body)
    except UNDECODABLE:
        return "the body cannot be read"
    if body.echo:
        return "echo"
    if isinstance(body.prompt, list) and len(body.prompt) > 1 and not isinstance(body.prompt[0], int):
        return "several prompts"
    if not CREATED.search(call.published[0].data):
        return "the first chunk published is none of vLLM's"
    if not call.published[0].prompt:
        return "the ids of the prompt were not published"
    if not any(chunk.tokens for chunk in call.published):
        return "no token ids were published"
    return ""
