"""A task as its hash tells it: one way to read it, for ingress, notifier and replies."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from shared.bus.connection import Reply
from shared.errors import UNDECODABLE, HeadraceError
from shared.lifecycle import State
from shared.messages import Finished, Task, decode_event, decode_task

FIELDS = (
    *("state", "spec", "epoch", "attempts", "last", "worker", "crashes", "failures", "history", "stop"),
    *("created_at_ms", "deadline_ms", "started_at_ms", "first_token_at_ms", "finished_at_ms", "status", "finished"),
)
"""Everything but the body and the result, which are read only when wanted."""


class Attempt(Struct, frozen=True, kw_only=True):
    """An attempt that did not end the task: those before the last one. Times are Unix milliseconds."""

    attempt: int
    worker: str
    started_at_ms: int
    ended_at_ms: int
    why: str
    """lost, engine_died, drained, redis_unreachable, out_of_step, unreadable, broken; or the code of the error after which it was tried again."""
    last: int
    """Chunks published by then, by this attempt and those it went on from."""


class Record(Struct, frozen=True, kw_only=True):
    state: State
    task: Task
    epoch: int
    attempt: int
    last: int
    """Chunks of the attempt that were published."""
    worker: str
    crashes: int
    failures: int
    history: list[Attempt]
    stop: str
    """`cancelled` or `expired`: its worker has been told to stop. Empty: go on."""
    created_at_ms: int
    deadline_ms: int
    started_at_ms: int
    first_token_at_ms: int
    finished_at_ms: int
    status: int
    """HTTP status of the answer; 0 while there is none."""
    finished: Finished | None


_history = msgspec.json.Decoder(Attempt)


def parse_record(values: Sequence[Reply]) -> Record | None:
    """The answer to HMGET of FIELDS; None if there is no such task (nor was: it may have been cancelled before it came).

    Raises: HeadraceError for a hash that is not ours.
    """
    state, spec, epoch, attempts, last, worker, crashes, failures, history, stop, *times, status, finished = values
    if state is None or spec is None:
        return None
    try:
        created, deadline, started, first_token, ended = (int(value or 0) for value in times)
        event = decode_event(finished) if finished else None
        return Record(
            state=State(state.decode()),
            task=decode_task(spec),
            epoch=int(epoch or 0),
            attempt=int(attempts or 0),
            last=int(last or 0),
            worker=(worker or b"").decode(),
            crashes=int(crashes or 0),
            failures=int(failures or 0),
            history=_history.decode_lines(history or b""),
            stop=(stop or b"").decode(),
            deadline_ms=deadline,
            created_at_ms=created,
            started_at_ms=started,
            first_token_at_ms=first_token,
            finished_at_ms=ended,
            status=int(status or 0),
            finished=event if isinstance(event, Finished) else None,
        )
    except (*UNDECODABLE, ValueError, TypeError) as error:
        raise HeadraceError(f"the hash of the task holds what no script of Headrace writes: {error}") from None
