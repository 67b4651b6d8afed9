"""What a run's answer means: terminal state, stored result, and the event that tells of it."""

import msgspec
from msgspec import Raw, Struct

from services.inference.engine import Answer
from services.inference.run import Parting, Run
from services.inference.scripts import Ending, Hand, Release, jitter
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

    @property
    def why(self) -> str:
        """The error in a word, for the history of a task."""
        return str(self.error.code or self.error.type) if self.error is not None else self.state


class _Choice(Struct):
    finish_reason: str | None = None


class _Whole(Struct):
    choices: list[_Choice] = []
    usage: Raw = NULL


class _Failure(Struct):
    error: ErrorBody


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


_usage = msgspec.json.Decoder(_Usage | None)
_whole = msgspec.json.Decoder(_Whole)
_failure = msgspec.json.Decoder(_Failure)


RETRIED = frozenset({429, 500, 502, 503, 504})
"""Answers of an engine that another try may mend: overload, and faults that are not the request's."""


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
    streamed = run.last > 0
    inline = not streamed and len(conclusion.result) <= INLINE_RESULT_BYTES
    finished = Finished(
        attempt=run.attempt,
        last=run.last,
        state=conclusion.state,
        status=conclusion.status,
        streamed=streamed,
        result=Raw(conclusion.result) if inline else NULL,
        error=conclusion.error,
        finish_reason=conclusion.finish_reason,
        usage=conclusion.usage,
    )
    return Ending(
        *tail(run, used(run, conclusion.usage)),
        conclusion.state,
        conclusion.status,
        conclusion.result,
        encode(finished),
    )


def parting(run: Run, parting: Parting) -> Release:
    """The arguments of release: everything that is not published yet, and why the task is given up."""
    return Release(*tail(run, used(run)), parting.charge, parting.why, 0)


def setback(run: Run, conclusion: Conclusion) -> Release:
    """The same for a failure that another try may mend; should this have been the last try, it ends with `conclusion`."""
    end = ending(run, conclusion)
    return Release(*tail(run, used(run)), "failure", conclusion.why, jitter(), end.status, end.result, end.finished)


def untouched(hand: Hand, published: int, parting: Parting) -> Release:
    """A task that was started and cannot even be read."""
    return Release(
        hand.id, hand.epoch, hand.entry, published + 1, published, b"", b"", 0, parting.charge, parting.why, 0
    )


def tail(run: Run, tokens: int) -> tuple[str, int, bytes, int, int, bytes, bytes, int]:
    """The fields of Tail."""
    first, last = run.published + 1, run.last
    return (run.id, run.hand.epoch, run.hand.entry, first, last, *run.range(first, last), tokens)


def used(run: Run, usage: Raw = NULL) -> int:
    """Tokens of prompt and answer: as the engine counts them, else those of the chunks."""
    try:
        counted: _Usage | None = _usage.decode(usage)
    except msgspec.DecodeError:
        counted = None
    if counted is not None:
        return max(0, counted.prompt_tokens) + max(0, counted.completion_tokens)
    return sum(len(chunk.tokens) + len(chunk.prompt) for chunk in run.chunks)


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
