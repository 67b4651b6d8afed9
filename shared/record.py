"""A task as its hash tells it: one way to read it, for ingress, notifier and replies."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from shared.bus.connection import Reply
from shared.errors import HeadraceError
from shared.lifecycle import State
from shared.messages import Finished, Task, decode_event, decode_task

FIELDS = (
    *("state", "spec", "epoch", "attempts", "last", "worker"),
    *("created_at_ms", "started_at_ms", "first_token_at_ms", "finished_at_ms", "status", "finished"),
)
"""Everything but the body and the result, which are read only when wanted."""


class Record(Struct, frozen=True, kw_only=True):
    state: State
    task: Task
    epoch: int
    attempt: int
    last: int
    """Chunks of the attempt that were published."""
    worker: str
    created_at_ms: int
    started_at_ms: int
    first_token_at_ms: int
    finished_at_ms: int
    status: int
    """HTTP status of the answer; 0 while there is none."""
    finished: Finished | None


def parse_record(values: Sequence[Reply]) -> Record | None:
    """The answer to HMGET of FIELDS; None if there is no such task. Raises: HeadraceError for a hash that is not ours."""
    if values[0] is None:
        return None
    state, spec, epoch, attempts, last, worker, *times, status, finished = values
    try:
        created, started, first_token, ended = (int(value or 0) for value in times)
        event = decode_event(finished) if finished else None
        return Record(
            state=State(state.decode()),
            task=decode_task(spec),
            epoch=int(epoch or 0),
            attempt=int(attempts or 0),
            last=int(last or 0),
            worker=(worker or b"").decode(),
            created_at_ms=created,
            started_at_ms=started,
            first_token_at_ms=first_token,
            finished_at_ms=ended,
            status=int(status or 0),
            finished=event if isinstance(event, Finished) else None,
        )
    except (msgspec.DecodeError, ValueError, TypeError) as error:
        raise HeadraceError(f"the hash of the task holds what no script of Headrace writes: {error}") from None
