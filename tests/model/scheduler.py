"""What schedulers do to tasks: admit, dispatch, reap, due, repair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from services.inference.scripts import Slots
from shared.lifecycle import Lane, State
from tests.model.lifecycle import Due, Entry, Shard, Task, due

FAR_AHEAD = 20_000
"""Tokens over share that a lane may be ahead of a less urgent one."""


@dataclass
class Asked(Entry):
    """An arrival, and what became of the question for its quota: empty (nobody has asked), `taken`, or a pause in ms."""

    quota: str = ""


def admit(shard: Shard, arrivals: Sequence[Asked]) -> list[str]:
    verdicts = [_admit(shard, arrival.task, arrival.quota) for arrival in arrivals]
    gone = {arrival.entry for arrival, verdict in zip(arrivals, verdicts, strict=True) if verdict != "owes"}
    shard.arrivals = [entry for entry in shard.arrivals if entry.entry not in gone]
    return verdicts


def _admit(shard: Shard, id: str, quota: str) -> str:
    if not id:
        return "wake"
    task = shard.tasks[id]
    if task.state is not State.PENDING:
        return task.state
    if id in shard.running[task.tenant]:
        return "handed out"
    if id in shard.later:
        return "later"
    if task.owes:
        if not quota:
            return "owes"
        if quota != "taken":
            shard.later[id] = False
            return "later"
        task.owes, task.metered = False, True
    shard.line_up(task)
    return "queued"


# -- dispatch


@dataclass
class Clocks:
    """Virtual times, as Redis has them."""

    now: dict[Lane, float]
    """Of each lane: what a tenant that comes begins with."""
    tags: dict[Lane, float]
    """Of each lane, among the lanes."""
    turns: dict[Lane, dict[str, float]]
    """Of each lane: the tenants that take turns."""


@dataclass
class Chosen:
    """What a dispatch has done."""

    workers: Mapping[str, str]
    """The worker that got each task."""
    aside: set[str]
    """Tasks that were put aside for a while."""
    turns: Mapping[Lane, set[str]]
    """Who takes turns afterwards."""


def dispatch(shard: Shard, most: int, chosen: Chosen) -> tuple[int, int, int]:
    """Asserts that it was allowed to choose so, and that it left nothing that it had to hand out."""
    for lane, tenant in list(shard.backlogs):
        _check_order(shard, lane, tenant, {*chosen.workers, *chosen.aside})
    served = [shard.tasks[id] for id in chosen.workers]
    for task in served:
        assert shard.is_waiting(task), f"{task.id} was handed out, it is {task.state}"
        _hand_over(shard, task, chosen.workers[task.id])
    for id in chosen.aside:
        _put_aside(shard, shard.tasks[id])
    for tenant in {task.tenant for task in served}:
        running, cap = len(shard.running[tenant]), shard.caps[tenant]
        assert not cap or running <= cap, f"{tenant} runs {running} of {cap}"
    assert len(served) <= most
    for lane in Lane:
        _take_over_turns(shard, lane, {task.tenant for task in served}, chosen.turns[lane])
    if len(served) < most:
        _check_nothing_left(shard)
    free = sum(max(0, room.total) for room in rooms(shard).values())
    return len(served), sum(shard.waiting[f"l:{lane}"] for lane in Lane), free


def _check_order(shard: Shard, lane: Lane, tenant: str, gone: set[str]) -> None:
    """The first of a tenant go first."""
    line = sorted((shard.tasks[id] for id in shard.backlogs[lane, tenant]), key=lambda task: task.place)
    first = [task.id for task in takewhile(lambda task: task.id in gone, line)]
    overtook = [task.id for task in line if task.id in gone and task.id not in first]
    assert not overtook, f"{overtook} of {tenant} were taken before {line[len(first)].id}"


def _hand_over(shard: Shard, task: Task, worker: str) -> None:
    room = rooms(shard).get(worker)
    assert room is not None, f"{task.id} went to {worker}, which is not alive"
    assert in_lane(room, task.lane) > 0, f"{task.id} went to {worker}, which has {room} left"
    shard.backlogs[task.lane, task.tenant].remove(task.id)
    shard.running[task.tenant].add(task.id)
    task.epoch += 1
    shard.work[worker].append(Entry(task.id, task.epoch, lane=task.lane))
    if is_suspected(shard, task):
        assert not _has_suspect(shard, worker), f"{task.id} is suspected, and went to {worker}, which has a suspect"
        shard.suspects[worker] = (task.id, task.epoch)


def _put_aside(shard: Shard, task: Task) -> None:
    """Rooms only shrink in a dispatch, so who had one for it has it still."""
    assert is_suspected(shard, task), f"{task.id} was put aside"
    fit = [n for n, room in rooms(shard).items() if in_lane(room, task.lane) > 0 and not _has_suspect(shard, n)]
    assert not fit, f"{task.id} was put aside, {fit} could have it"
    shard.backlogs[task.lane, task.tenant].remove(task.id)
    shard.later[task.id] = False


def _take_over_turns(shard: Shard, lane: Lane, served: set[str], found: set[str]) -> None:
    """Who has nothing left or runs all it may is out, in all lanes; of those that it did not serve, dispatch may not know it."""
    assert found <= shard.turns[lane], f"{found - shard.turns[lane]} came into the turns of {lane} by a dispatch"
    for tenant in set(shard.turns[lane]):
        able = shard.backlogs[lane, tenant] and not shard.is_at_cap(tenant)
        assert not able or tenant in found, f"{tenant} lost its turns in {lane}"
        assert able or tenant not in served or tenant not in found, f"{tenant} kept its turns in {lane}"
        if tenant not in found:
            shard.rest(lane, tenant)


def _check_nothing_left(shard: Shard) -> None:
    for lane in Lane:
        able = [t for t in shard.turns[lane] if shard.backlogs[lane, t] and not shard.is_at_cap(t)]
        room = {name: room for name, room in rooms(shard).items() if in_lane(room, lane) > 0}
        assert not (able and room), f"{able} wait in {lane}, and there was room: {room}"


def check_turn(shard: Shard, before: Clocks, task: Task, worker: str) -> None:
    """Of a dispatch of one task, held against what it found; only if everybody who took turns had something to run."""
    room = rooms(shard)
    lanes = [lane for lane in Lane if shard.turns[lane] and any(in_lane(one, lane) > 0 for one in room.values())]
    if any(not shard.backlogs[lane, t] or shard.is_at_cap(t) for lane in lanes for t in shard.turns[lane]):
        return
    least = min(before.tags[lane] for lane in lanes)
    lane = next(lane for lane in lanes if before.tags[lane] <= least + FAR_AHEAD)
    assert task.lane is lane, f"{task.id} of {task.lane} was chosen, it was the turn of {lane}: {before.tags}"
    tenant = min(before.turns[lane], key=lambda name: (before.turns[lane][name], name))
    assert task.tenant == tenant, f"{task.id} of {task.tenant} was chosen, it was the turn of {tenant}: {before.turns}"
    fit = {name: in_lane(one, lane) for name, one in room.items()}
    if is_suspected(shard, task):
        fit = {name: free for name, free in fit.items() if not _has_suspect(shard, name)}
    assert fit[worker] == max(fit.values()), f"{task.id} went to {worker}; free slots of those it may go to: {fit}"


def rooms(shard: Shard) -> dict[str, Slots]:
    """What live workers may be handed still: in all, of normal and batch together, of batch."""
    found = {}
    for name, worker in shard.workers.items():
        if not worker.silent:
            normal, batch = (shard.held[f"{name} {lane}"] for lane in (Lane.NORMAL, Lane.BATCH))
            slots = worker.slots
            found[name] = Slots(slots.total - len(shard.work[name]), slots.normal - normal - batch, slots.batch - batch)
    return found


def in_lane(room: Slots, lane: Lane) -> int:
    match lane:
        case Lane.INTERACTIVE:
            return room.total
        case Lane.NORMAL:
            return min(room.total, room.normal)
        case Lane.BATCH:
            return min(room.total, room.normal, room.batch)


def is_suspected(shard: Shard, task: Task) -> bool:
    return task.crashes >= max(1, shard.limits.crashes - 1)


def _has_suspect(shard: Shard, worker: str) -> bool:
    id, epoch = shard.suspects.get(worker, ("", 0))
    task = shard.tasks.get(id)
    return task is not None and task.epoch == epoch and not task.state.terminal


# -- what comes by itself


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
    back = [id for id in due(shard.later) if shard.tasks[id].state is State.PENDING]
    for id in due(shard.later):
        del shard.later[id]
    shard.arrivals += [Entry(id) for id in back]
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
    waits = id in shard.backlogs[task.lane, task.tenant] or id in shard.later
    if id not in shard.expiry or (id in shard.leases if task.state is State.PROCESSING else waits):
        return "well"
    if before != str(task.epoch):
        return str(task.epoch)
    if task.state is State.PENDING and task.owes:
        shard.arrivals.append(Entry(id))
    elif task.state is State.PENDING:
        shard.requeue(task, "astray")
    else:
        shard.leases[id] = True
    return "repaired"
