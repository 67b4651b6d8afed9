"""What schedulers do to tasks: admit, dispatch, reap, due, repair."""

from collections.abc import Mapping, Sequence

from shared.lifecycle import Lane, State
from tests.model.lifecycle import Due, Entry, Shard, Task, due


def admit(shard: Shard, arrivals: Sequence[Entry]) -> list[str]:
    verdicts = [_admit(shard, arrival.task) for arrival in arrivals]
    gone = {arrival.entry for arrival in arrivals}
    shard.arrivals = [entry for entry in shard.arrivals if entry.entry not in gone]
    return verdicts


def _admit(shard: Shard, id: str) -> str:
    if not id:
        return "wake"
    task = shard.tasks[id]
    if task.state is not State.PENDING:
        return task.state
    if task.epoch:
        return "handed out"
    shard.backlogs[task.lane].add(id)
    return "queued"


def dispatch(shard: Shard, most: int, chosen: Mapping[str, str]) -> tuple[int, int, int]:
    """`chosen`: the worker that got each task. Asserts that each choice was a right one."""
    credits, handed_out = free_slots(shard), 0
    for task in _waiting(shard):
        if not sum(credits.values()) or handed_out == most:
            break
        shard.backlogs[task.lane].remove(task.id)
        suspected = task.crashes >= max(1, shard.limits.crashes - 1)
        fit = {name: n for name, n in credits.items() if n and not (suspected and _has_suspect(shard, name))}
        if not fit:
            assert task.id not in chosen, f"{task.id} was handed to {chosen[task.id]}, no worker may have it"
            shard.later[task.id] = False
            continue
        worker = chosen.get(task.id, "nobody")
        assert fit.get(worker) == max(fit.values()), (
            f"{task.id} went to {worker}; free slots of those it may go to: {fit}"
        )
        task.epoch += 1
        shard.work[worker].append(Entry(task.id, task.epoch))
        if suspected:
            shard.suspects[worker] = (task.id, task.epoch)
        credits[worker] -= 1
        handed_out += 1
    return handed_out, sum(map(len, shard.backlogs.values())), sum(credits.values())


def _waiting(shard: Shard) -> list[Task]:
    tasks = [shard.tasks[id] for ids in shard.backlogs.values() for id in ids]
    return sorted(tasks, key=lambda task: (list(Lane).index(task.lane), task.created_at_ms, task.id))


def free_slots(shard: Shard) -> dict[str, int]:
    live = {name: worker for name, worker in shard.workers.items() if not worker.silent}
    return {name: max(0, worker.slots - len(shard.work[name])) for name, worker in live.items()}


def _has_suspect(shard: Shard, worker: str) -> bool:
    id, epoch = shard.suspects.get(worker, ("", 0))
    task = shard.tasks.get(id)
    return task is not None and task.epoch == epoch and not task.state.terminal


def reap(shard: Shard) -> tuple[int, int, int, int]:
    lost = [shard.survive(shard.tasks[id], "lost") for id in due(shard.leases)]
    for name in [name for name in shard.suspects if not _has_suspect(shard, name)]:
        del shard.suspects[name]
    unstarted = removed = 0
    for name in [name for name, worker in shard.workers.items() if worker.silent]:
        for entry in list(shard.work[name]):
            task = shard.tasks[entry.task]
            current = task.epoch == entry.epoch
            if current and task.state is State.PENDING:
                shard.requeue(task, "lost")
                unstarted += 1
            if not (current and task.state is State.PROCESSING):
                shard.clear(name, entry.entry)
        if not shard.work[name]:
            shard.forget(name)
            removed += 1
    shard.wake(lost or unstarted)
    return len(lost), unstarted, removed, lost.count("quarantined")


def pass_time(shard: Shard) -> tuple[int, int, int, int]:
    """due.lua"""
    expired, told = _stop_due(shard, shard.expiry, "expired")
    cancelled, told_too = _stop_due(shard, shard.attached, "cancelled")
    back = due(shard.later)
    for id in back:
        del shard.later[id]
        shard.backlogs[shard.tasks[id].lane].add(id)
    shard.wake(back)
    return expired, cancelled, told + told_too, len(back)


def _stop_due(shard: Shard, index: Due, word: str) -> tuple[int, int]:
    ended = told = 0
    for id in due(index):
        task = shard.tasks[id]
        if task.state is State.PENDING:
            shard.end(task, State(word))
            ended += 1
        else:
            shard.ask_to_stop(task, word)
            index[id] = False
            told += 1
    return ended, told


def repair(shard: Shard, id: str, before: str) -> str:
    task = shard.tasks[id]
    waits = id in shard.backlogs[task.lane] or id in shard.later
    if id not in shard.expiry or (id in shard.leases if task.state is State.PROCESSING else waits):
        return "well"
    if before != str(task.epoch):
        return str(task.epoch)
    if task.state is State.PENDING:
        shard.requeue(task, "astray")
    else:
        shard.leases[id] = True
    return "repaired"
