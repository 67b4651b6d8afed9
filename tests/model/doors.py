"""What clients do to a task: submit, cancel, attend."""

from collections.abc import Sequence

from shared.lifecycle import Lane, State
from tests.model.lifecycle import Entry, Shard, Task


def submit(
    shard: Shard, task: Task, *, attached: bool, later: bool = False, queued_limit: int = 0, batch_limit: int = 0
) -> str:
    """`task` is what would be made; `later`: not before some time. Limits of its tenant: 0 is none."""
    if task.id in shard.tasks:
        return shard.tasks[task.id].state
    cancelled = task.id in shard.tombstones
    if not cancelled and (refused := _over_limit(shard, task, queued_limit, batch_limit)):
        return refused
    shard.tasks[task.id] = task
    if task.session:
        task.live.append(("pending",))
    if cancelled:
        shard.tombstones.remove(task.id)
        shard.end(task, State.CANCELLED)
        return "cancelled"
    if later:
        shard.later[task.id] = False
    else:
        shard.arrivals.append(Entry(task.id))
    shard.expiry[task.id] = False
    if attached:
        shard.attached[task.id] = False
    return "new"


FILLS = {Lane.INTERACTIVE: 1.0, Lane.NORMAL: 0.9, Lane.BATCH: 0.8}
"""Share of the backlog that a lane may fill."""


def _over_limit(shard: Shard, task: Task, queued_limit: int, batch_limit: int) -> str:
    waiting = shard.waiting
    if sum(waiting[f"l:{lane}"] for lane in Lane) >= shard.limits.backlog * FILLS[task.lane]:
        return "full"
    if queued_limit and waiting[f"n:{task.tenant}"] >= queued_limit:
        return "tenant_full"
    if task.lane is Lane.BATCH and batch_limit and waiting[f"b:{task.tenant}"] + task.most_tokens > batch_limit:
        return "batch_full"
    return ""


def cancel(shard: Shard, id: str) -> str:
    task = shard.tasks.get(id)
    if task is None:
        shard.tombstones.add(id)
        return "unknown"
    if task.state is State.PENDING:
        shard.end(task, State.CANCELLED)
    elif task.state is State.PROCESSING:
        shard.ask_to_stop(task, "cancelled")
    return task.state


def attend(shard: Shard, ids: Sequence[str]) -> int:
    still = [id for id in ids if id in shard.attached]
    shard.attached |= dict.fromkeys(still, False)
    return len(still)
