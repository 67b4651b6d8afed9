"""What clients do to a task: submit, cancel, attend."""

from collections.abc import Sequence

from shared.lifecycle import State
from tests.model.lifecycle import Entry, Shard, Task


def submit(shard: Shard, task: Task, *, attached: bool) -> str:
    """`task` is what would be made."""
    if task.id in shard.tasks:
        return shard.tasks[task.id].state
    cancelled = task.id in shard.tombstones
    if not cancelled and len(shard.arrivals) + sum(map(len, shard.backlogs.values())) >= shard.limits.backlog:
        return "full"
    shard.tasks[task.id] = task
    if task.session:
        task.live.append(("pending",))
    if cancelled:
        shard.tombstones.remove(task.id)
        shard.end(task, State.CANCELLED)
        return "cancelled"
    shard.arrivals.append(Entry(task.id))
    shard.expiry[task.id] = False
    if attached:
        shard.attached[task.id] = False
    return "new"


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
