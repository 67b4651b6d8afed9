"""What workers do to tasks: beat, start, rebase, emit, finish, release, retire."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.inference.scripts import NO_SLOTS, Slots
from shared.lifecycle import State
from tests.model.lifecycle import Announced, Shard, Task


@dataclass(frozen=True)
class Fence:
    worker: str
    nonce: str


@dataclass(frozen=True)
class Hold:
    """What a worker takes to be its own: a task at an epoch, and the entry that brought it."""

    task: str
    epoch: int
    entry: bytes


@dataclass(frozen=True)
class Range:
    """Chunks of an attempt; empty if first is above last."""

    attempt: int
    first: int
    last: int


def held(shard: Shard, fence: Fence, hold: Hold) -> Task | None:
    task = shard.tasks.get(hold.task)
    if task is None or (task.state, task.epoch, task.owner) != (State.PROCESSING, hold.epoch, fence.nonce):
        return None
    return task


def beat(shard: Shard, fence: Fence, slots: Slots, holds: Sequence[Hold]) -> dict[str, str]:
    before = shard.workers.get(fence.worker)
    shard.workers[fence.worker] = Announced(slots)
    shard.work.setdefault(fence.worker, [])
    shard.wake(before is None or before.slots != slots)
    stopped = {}
    for hold in holds:
        task = held(shard, fence, hold)
        if task is None:
            stopped[hold.task] = "fenced"
            continue
        shard.leases[task.id] = False
        if task.stop:
            stopped[task.id] = task.stop
    return stopped


def start(shard: Shard, fence: Fence, hold: Hold) -> tuple[int, int] | str:
    """(attempt, chunks published before it) or 'stale'."""
    task = shard.tasks.get(hold.task)
    if task is None or task.epoch != hold.epoch:
        return _stale(shard, fence, hold)
    mine = held(shard, fence, hold) is not None
    if mine and task.last == task.behind:
        return task.attempts, task.last
    if not mine and task.state is not State.PENDING:
        return _stale(shard, fence, hold)
    if task.overdue:
        shard.end(task, State.EXPIRED)
        return _stale(shard, fence, hold)
    if mine:
        task.remember("lost")
    task.state, task.owner, task.worker = State.PROCESSING, fence.nonce, fence.worker
    task.attempts += 1
    task.behind = task.last
    shard.leases[task.id] = False
    task.live.append(("started", task.attempts))
    return task.attempts, task.last


def _stale(shard: Shard, fence: Fence, hold: Hold) -> str:
    shard.clear(fence.worker, hold.entry)
    return "stale"


def rebase(shard: Shard, fence: Fence, hold: Hold, attempt: int, behind: int) -> str:
    task = held(shard, fence, hold)
    if task is None:
        return "fenced"
    if task.rebased == (attempt, behind):
        return "ok"
    if behind == 0:
        task.say("reset", attempt)
    elif behind == task.last:
        task.say("resumed", attempt, behind)
    else:
        return f"gap {task.last}"
    task.last = task.behind = behind
    task.rebased = (attempt, behind)
    return "ok"


def emit(shard: Shard, fence: Fence, hold: Hold, made: Range) -> str:
    task = held(shard, fence, hold)
    if task is None:
        return "fenced"
    if made.last <= task.last:
        return "ok"
    if made.first != task.last + 1:
        return f"gap {task.last}"
    _publish(task, made)
    return "ok"


def finish(shard: Shard, fence: Fence, hold: Hold, tail: Range, state: State) -> str:
    none_arriving = not shard.arrivals
    verdict = _finish(shard, fence, hold, tail, state)
    shard.wake(none_arriving and any(shard.turns.values()))
    return verdict


def _finish(shard: Shard, fence: Fence, hold: Hold, tail: Range, state: State) -> str:
    task = shard.tasks.get(hold.task)
    if task is None or (task.epoch, task.owner) != (hold.epoch, fence.nonce):
        shard.clear(fence.worker, hold.entry)
        return "fenced"
    if task.state is not State.PROCESSING:
        shard.clear(fence.worker, hold.entry)
        return "ok"
    if not _add_tail(task, tail):
        return f"gap {task.last}"
    shard.end(task, state, by_worker=True)
    shard.clear(fence.worker, hold.entry)
    return "ok"


def release(shard: Shard, fence: Fence, hold: Hold, tail: Range, charge: str, why: str) -> str:
    task = held(shard, fence, hold)
    if task is None:
        verdict = "fenced"
    elif not _add_tail(task, tail):
        verdict = f"gap {task.last}"
    else:
        verdict = _give_up(shard, task, charge, why)
    if not verdict.startswith("gap"):
        shard.clear(fence.worker, hold.entry)
    shard.wake()
    return verdict


def _give_up(shard: Shard, task: Task, charge: str, why: str) -> str:
    if task.stop:
        shard.end(task, State(task.stop))
        return task.stop
    charges: dict[str, Callable[[Shard, Task, str], str]] = {
        "failure": _fail,
        "crash": Shard.survive,
        "none": _hand_back,
    }
    return charges[charge](shard, task, why)


def _hand_back(shard: Shard, task: Task, why: str) -> str:
    shard.requeue(task, why)
    return "again"


def _fail(shard: Shard, task: Task, why: str) -> str:
    task.failures += 1
    if task.failures <= shard.limits.failures:
        shard.requeue(task, why, pause=True)
        return "later"
    task.remember(why)
    shard.end(task, State.FAILED, by_worker=True)
    shard.dead[task.id, why] += 1
    return "failed"


def retire(shard: Shard, fence: Fence, *, running: bool) -> tuple[int, int]:
    handed_back = 0
    for entry in list(shard.work.get(fence.worker, [])):
        task = shard.tasks[entry.task]
        current = task.epoch == entry.epoch
        mine = current and task.state is State.PROCESSING and task.owner == fence.nonce
        if mine and running and task.stop:
            shard.end(task, State(task.stop))
        elif (current and task.state is State.PENDING) or (mine and running):
            shard.requeue(task, "drained")
            handed_back += 1
        if running or not mine:
            shard.clear(fence.worker, entry.entry)
    left = len(shard.work.get(fence.worker, []))
    if left:
        shard.workers.setdefault(fence.worker, Announced()).slots = NO_SLOTS
    else:
        shard.forget(fence.worker)
    shard.wake(handed_back)
    return handed_back, left


def _add_tail(task: Task, tail: Range) -> bool:
    if tail.first > tail.last or tail.last <= task.last:
        return tail.last == task.last
    if tail.first != task.last + 1:
        return False
    _publish(task, tail)
    return True


def _publish(task: Task, made: Range) -> None:
    task.say("chunks", made.attempt, made.first, made.last)
    task.last = made.last
