"""What a run's answer means: terminal state, stored result, and the event that tells of it."""

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import astuple

from services.inference.engine import Answer
from services.inference.run import Parting, Run
from services.inference.scripts import Ending, Hand, Release, jitter
from shared.chunks import assemble, ending_of
from shared.errors import UNDECODABLE, ErrorBody, HeadraceError, NoObjectStore, ObjectMissing
from shared.lifecycle import State
from shared.messages import INLINE_RESULT_BYTES, NULL, Finished, Stored, encode


class Conclusion(Struct, frozen=True, kw_only=True):
    status: int
    result: bytes
    """What is stored and given to whoever asks: the engine's answer as it made it, or the sum of its chunks."""
    stored: Stored | None = None
    """The result, if it is in the object store and not here."""
    content_type: str = ""
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


class _Failure(Struct):
    error: ErrorBody


class _Usage(Struct):
    """As the routes call them: OpenAI's, and those of responses and messages. A route that makes none may tell the total alone."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    total_tokens: int | None = None

    @property
    def used(self) -> int:
        told = [count for count in astuple(self)[:-1] if count is not None]
        return sum(max(0, count) for count in told) if told else max(0, self.total_tokens or 0)


_usage = msgspec.json.Decoder(_Usage | None)
_failure = msgspec.json.Decoder(_Failure)


WORDS = 2000
"""Characters of an error that is put into our shape; the answer itself has them all."""
RETRIED = frozenset({429, 500, 502, 503, 504})
"""Answers of an engine that another try may mend: overload, and faults that are not the request's."""


def failure(message: str, *, status: int = 500, code: str = "engine_error") -> Answer:
    error = ErrorBody(message=message, type="server_error", code=code)
    return Answer(status=status, body=encode({"error": error}))


def unread(error: HeadraceError) -> Answer:
    """Of a task whose body, in the object store, could not be read."""
    match error:
        case ObjectMissing():
            return failure("The body of the task is not in the object store any more.", code="object_missing")
        case NoObjectStore():
            why = "is in the object store, and its worker has none: its operator names one with HEADRACE_OBJECTS"
        case _:
            why = "cannot be read: the object store cannot be used; the log of the worker says why"
    return failure(f"The body of the task {why}.", status=503, code="store_unavailable")


def conclude(run: Run, answer: Answer, limit_bytes: int) -> Conclusion:
    if answer.status >= 400:
        return _failed(answer)
    if answer.content_type:
        conclusion = Conclusion(status=answer.status, result=answer.body, content_type=answer.content_type)
    elif answer.body:
        told = ending_of(answer.body)
        conclusion = Conclusion(
            status=answer.status, result=answer.body, finish_reason=told.finish_reason, usage=told.usage
        )
    else:
        assembled = assemble(run.task.route, [chunk.data for chunk in run.chunks])
        if assembled.failed:
            return _failed(Answer(status=500, body=assembled.result))
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
    small = conclusion.stored is None and len(conclusion.result) <= INLINE_RESULT_BYTES
    inline = not streamed and not conclusion.content_type and small
    finished = Finished(
        attempt=run.attempt,
        last=run.last,
        state=conclusion.state,
        status=conclusion.status,
        streamed=streamed,
        content_type=conclusion.content_type,
        result=Raw(conclusion.result) if inline else NULL,
        error=conclusion.error,
        finish_reason=conclusion.finish_reason,
        usage=conclusion.usage,
        stored=conclusion.stored,
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


def setback(run: Run, conclusion: Conclusion, least_s: float, *, final: bool) -> Release:
    """The same for a failure that another try may mend, after `least_s` at the soonest; should this have been the last try,
    or be so (`final`), it ends with `conclusion`, as a dead letter."""
    end = ending(run, conclusion)
    made = tail(run, used(run))
    least_ms = int(least_s * 1000)
    charge = "final" if final else "failure"
    return Release(*made, charge, conclusion.why, jitter(), end.status, end.result, end.finished, least_ms)


def untouched(hand: Hand, published: int, parting: Parting) -> Release:
    """Nothing that this run has made: what is published stands."""
    return Release(
        hand.id, hand.epoch, hand.entry, published + 1, published, b"", b"", 0, parting.charge, parting.why, 0
    )


def tail(run: Run, tokens: int) -> tuple[str, int, bytes, int, int, bytes, bytes, int]:
    """The fields of Tail."""
    first, last = run.published + 1, run.last
    return (run.id, run.hand.epoch, run.hand.entry, first, last, *run.range(first, last), tokens)


def used(run: Run, usage: Raw = NULL) -> int:
    """Tokens of prompt and answer: as the engine counts them, else those of the chunks; 0: it counts none, and the scripts estimate."""
    try:
        counted: _Usage | None = _usage.decode(usage)
    except UNDECODABLE:
        counted = None
    if counted is not None:
        return counted.used
    return sum(len(chunk.tokens) + len(chunk.prompt) for chunk in run.chunks)


def _failed(answer: Answer) -> Conclusion:
    """The engine's own words stay as they are, as long as they are JSON."""
    try:
        error = _failure.decode(answer.body).error
    except msgspec.ValidationError:
        error = _reworded(answer)
    except UNDECODABLE:
        answer = failure(f"The engine answered {answer.status} with something that is not an error in JSON.")
        error = _failure.decode(answer.body).error
    return Conclusion(status=answer.status, result=answer.body, error=error)


def _reworded(answer: Answer) -> ErrorBody:
    """An error in another shape than the OpenAI API's, such as FastAPI's `{"detail": ...}`."""
    told = msgspec.json.decode(answer.body)
    for name in ("error", "detail", "message"):
        told = told.get(name, told) if isinstance(told, dict) else told
    message = told if isinstance(told, str) else msgspec.json.encode(told).decode()
    return ErrorBody(
        message=message[:WORDS],
        type="invalid_request_error" if answer.status < 500 else "server_error",
        code=answer.status,
    )
