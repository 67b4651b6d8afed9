"""What a run's answer means: terminal state, stored result, and the event that tells of it."""

import msgspec
from msgspec import Raw, Struct

from services.inference.engine import Answer
from services.inference.run import Run
from services.inference.scripts import Ending
from shared.chunks import assemble
from shared.errors import ErrorBody
from shared.lifecycle import State
from shared.messages import INLINE_RESULT_BYTES, NULL, Finished, encode


class Conclusion(Struct, frozen=True, kw_only=True):
    status: int
    result: bytes
    """What is stored and given to whoever asks: the engine's answer as it made it, or the sum of its chunks."""
    error: ErrorBody | None = None
    finish_reason: str | None = None
    usage: Raw = NULL

    @property
    def state(self) -> State:
        return State.COMPLETED if self.status < 400 else State.FAILED

    @property
    def reason(self) -> str:
        """Of low cardinality: a label of metrics."""
        return (self.finish_reason or "none") if self.error is None else str(self.error.type)


class _Choice(Struct):
    finish_reason: str | None = None


class _Whole(Struct):
    choices: list[_Choice] = []
    usage: Raw = NULL


class _Failure(Struct):
    error: ErrorBody


_whole = msgspec.json.Decoder(_Whole)
_failure = msgspec.json.Decoder(_Failure)


def failure(message: str, *, status: int = 500, code: str = "engine_error") -> Answer:
    error = ErrorBody(message=message, type="server_error", code=code)
    return Answer(status=status, body=encode({"error": error}))


def conclude(run: Run, answer: Answer, limit_bytes: int) -> Conclusion:
    if answer.status >= 400:
        return _failed(answer)
    if answer.body:
        whole = _read(answer.body)
        reason = whole.choices[0].finish_reason if whole.choices else None
        conclusion = Conclusion(status=answer.status, result=answer.body, finish_reason=reason, usage=whole.usage)
    else:
        assembled = assemble(run.task.route, [chunk.data for chunk in run.chunks])
        conclusion = Conclusion(
            status=answer.status, result=assembled.result, finish_reason=assembled.finish_reason, usage=assembled.usage
        )
    if len(conclusion.result) > limit_bytes:
        message = f"The result has {len(conclusion.result)} bytes; the limit is {limit_bytes} (limits.result_bytes)."
        return _failed(failure(message, code="result_too_large"))
    return conclusion


def ending(run: Run, conclusion: Conclusion) -> Ending:
    """The arguments of finish: everything that is not published yet, and the end."""
    first, last = run.published + 1, len(run.chunks)
    chunks, journal = run.range(first, last)
    streamed = last > 0
    inline = not streamed and len(conclusion.result) <= INLINE_RESULT_BYTES
    finished = Finished(
        attempt=run.attempt,
        last=last,
        state=conclusion.state,
        status=conclusion.status,
        streamed=streamed,
        result=Raw(conclusion.result) if inline else NULL,
        error=conclusion.error,
        finish_reason=conclusion.finish_reason,
        usage=conclusion.usage,
    )
    return Ending(
        id=run.id,
        epoch=run.hand.epoch,
        entry=run.hand.entry,
        first=first,
        last=last,
        chunks=chunks,
        journal=journal,
        state=conclusion.state,
        status=conclusion.status,
        result=conclusion.result,
        finished=encode(finished),
    )


def _failed(answer: Answer) -> Conclusion:
    try:
        error = _failure.decode(answer.body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        answer = failure(f"The engine answered {answer.status} with something that is not an error in JSON.")
        error = _failure.decode(answer.body).error
    return Conclusion(status=answer.status, result=answer.body, error=error)


def _read(body: bytes) -> _Whole:
    try:
        return _whole.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Whole()
