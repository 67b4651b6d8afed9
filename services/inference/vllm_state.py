"""The state that vLLM keeps of a request on this side of its engine, made anew from the tokens that were published.

The classes are vLLM's own, so that text (also of a character whose bytes are cut apart), stop strings and the tokens of
log probabilities come out as they would have. To be imported once vLLM's environment is set.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import RequestState
from vllm.v1.outputs import LogprobsLists

from services.inference.replay import Replay


class RestoredState:
    """vLLM's RequestState after the published tokens: text, stop strings and log probabilities go on from there."""

    def __init__(self, inner: Any, eos: set[int], request_id: str, params: Any, replay: Replay) -> None:
        """`eos`: ids that end a text by the model's own generation config."""
        self.outputs: list[Any] = []
        self._state = _new_state(inner, request_id, params, replay.prompt)
        *steps, last = replay.groups
        for step in steps:
            self._step(list(step), None, None)
        self._step(list(last), *_end(inner, eos, params, replay))
        self.finished: bool = self.outputs[-1].finished

    def take_over(self, state: Any) -> None:
        for name in ("prompt_token_ids", "prompt_len", "detokenizer", "logprobs_processor", "sent_tokens_offset"):
            setattr(state, name, getattr(self._state, name))

    def _step(self, tokens: list[int], finish: Any, stop_reason: int | str | None) -> None:
        """As vLLM's OutputProcessor takes a step; the log probabilities are of nothing, only their tokens count."""
        state = self._state
        if stop := state.detokenizer.update(tokens, finish == FinishReason.STOP):
            finish, stop_reason = FinishReason.STOP, stop
        if state.logprobs_processor.logprobs is not None:
            column = numpy.array(tokens).reshape(-1, 1)
            made = LogprobsLists(column, numpy.zeros(column.shape), numpy.ones(len(tokens), dtype=int))
            state.logprobs_processor.update_from_output(EngineCoreOutput("", tokens, new_logprobs=made))
        if output := state.make_request_output(tokens, None, finish, stop_reason):
            self.outputs.append(output)


def _new_state(inner: Any, request_id: str, params: Any, prompt: Sequence[int]) -> Any:
    request = EngineCoreRequest(
        request_id=request_id,
        external_req_id=request_id,
        prompt_token_ids=list(prompt),
        sampling_params=params,
        pooling_params=None,
        mm_features=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    return RequestState.from_new_request(
        tokenizer=inner.output_processor.tokenizer,
        request=request,
        prompt=None,
        parent_req=None,
        request_index=0,
        queue=None,
        log_stats=False,
        stream_interval=inner.output_processor.stream_interval,
    )


def _end(inner: Any, eos: set[int], params: Any, replay: Replay) -> tuple[Any, int | None]:
    """Why vLLM ended behind the last published token: (finish reason, stop reason); twice None if it did not.

    The chunk that says so may be lost: the first chunk of a chat goes out before it, with the first token's id.
    """
    made, last = len(replay.tokens), replay.groups[-1][-1]
    if last == inner.output_processor.tokenizer.eos_token_id and not params.ignore_eos:
        return FinishReason.STOP, None
    if last in (params.stop_token_ids or ()) or (last in eos and not params.ignore_eos):
        return FinishReason.STOP, last
    if made >= (params.max_tokens or math.inf) or len(replay.prompt) + made >= inner.model_config.max_model_len:
        return FinishReason.LENGTH, None
    return None, None
