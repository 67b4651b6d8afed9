"""The model of shared/lua/lib/eta.lua as pure code: what the library must agree with, and what properties are tested on."""

from msgspec import Struct

KEEPS_UP_S = 2
AHEAD = 20_000
"""As in eta.lua."""


class Lane(Struct, frozen=True):
    share: float
    waiting: int = 0
    run_ms: float = 0
    """Moving mean of a run; 0: none has ended yet."""
    pace: float = 0
    """Tasks a second that were handed out of late."""
    tag: float = 0
    """Its virtual time."""
    limit: int = 0
    """Slots that the lane may hold; 0: all."""


class Shard(Struct, frozen=True):
    lanes: tuple[Lane, Lane, Lane]
    slots: int
    running: int = 0


class Asked(Struct, frozen=True):
    """Of the task and its tenant."""

    lane: int
    rank: int = 0
    """Tasks of its tenant and lane before it."""
    waiting: int = 0
    """Tasks of its tenant and lane that wait."""
    ahead: int = 0
    """Tenants of the lane whose turn comes before its own."""
    others: int = 0
    """Other tenants that take turns in the lane."""
    weight: float = 1
    their_weight: float = 1
    """Mean of the other tenants."""
    tokens: float = 256
    """That a task is taken to use."""
    cap: int = 0
    held: int = 0
    """Of its tenant, running."""


class Estimate(Struct, frozen=True):
    before: int
    wait_ms: int


def estimate(shard: Shard, asked: Asked) -> Estimate:
    lanes, own = shard.lanes, asked.lane
    of_others = max(0, lanes[own].waiting - max(asked.waiting, asked.rank))
    in_lane = asked.rank + min(of_others, asked.ahead + asked.rank / asked.weight * asked.others * asked.their_weight)

    slots = min(shard.slots, lanes[own].limit or shard.slots)
    free = max(0, slots - shard.running)
    left, before = [lane.waiting for lane in lanes], in_lane
    for urgent in range(own):
        taken = min(free, left[urgent])
        left[urgent] -= taken
        free -= taken
        before += taken
    due = in_lane + 1 - free
    runs = [run_of(lanes, i) for i in range(3)]
    wait_ms = 0.0
    if due > 0:
        if shard.slots == 0 or not runs[own]:
            started = [float(count) for count in left]
            wait_ms = -1
        else:
            wait_ms, started = flow(shard, asked, due, left, runs)
            _, before_own = flow(shard, asked, due - 1, left, runs)
            started = [started[i] if i < own else before_own[i] for i in range(3)]
        before += sum(started[:own]) + (sum(started[own + 1 :]) if wait_ms >= 0 else 0)
    if asked.cap and wait_ms >= 0:
        turns = asked.rank + 1 - max(0, asked.cap - asked.held)
        if turns > 0:
            wait_ms = max(wait_ms, turns * runs[own] / asked.cap) if runs[own] else -1
    return Estimate(int(before + 1e-6), int(wait_ms + 0.5) if wait_ms >= 0 else -1)


def run_of(lanes: tuple[Lane, Lane, Lane], i: int) -> float:
    return lanes[i].run_ms or next((lane.run_ms for lane in lanes if lane.run_ms), 0)


def flow(shard: Shard, asked: Asked, due: float, waiting: list[int], runs: list[float]) -> tuple[float, list[float]]:
    """How long until `due` tasks of the lane have started, and how many of each lane have by then."""
    lanes, slots, own = shard.lanes, shard.slots, asked.lane
    work = [count * run for count, run in zip(waiting, runs, strict=True)]
    work[own] = max(0, due) * runs[own]
    first = ahead_of(lanes, asked, work, runs)
    loads = [
        lane.pace * run / 1000 if lane.waiting <= lane.pace * KEEPS_UP_S else 0
        for lane, run in zip(lanes, runs, strict=True)
    ]
    wait_ms, started = 0.0, [0.0, 0.0, 0.0]
    while work[own] > 0:
        active = [i for i in range(3) if work[i] > 0]
        head = next((i for i in active if first[i] > 0 and i <= own), None)
        if head is not None:
            active = [i for i in active if i <= head]
        share = sum(lanes[i].share for i in active)
        coming = [i for i in range(3) if work[i] == 0 and loads[i] > 0]
        total = share + sum(lanes[i].share for i in coming)
        taken = sum(loads[i] if i < own else min(loads[i], slots * lanes[i].share / total) for i in coming)
        room = max(slots - taken, slots * share / total)
        rates = {i: room * lanes[i].share / share for i in active}
        if lanes[own].limit and own in rates:
            rates[own] = min(rates[own], lanes[own].limit)
        step_ms, done = min((work[i] / rates[i], i) for i in active)
        if head is not None and first[head] / rates[head] < step_ms:
            step_ms, done = first[head] / rates[head], -1
            first[head] = 0
        for i in active:
            work[i] = 0 if i == done else max(0, work[i] - rates[i] * step_ms)
            first[i] = max(0, first[i] - rates[i] * step_ms)
            started[i] += rates[i] * step_ms / runs[i]
        wait_ms += step_ms
    return wait_ms, started


def ahead_of(lanes: tuple[Lane, Lane, Lane], asked: Asked, work: list[float], runs: list[float]) -> list[float]:
    """Slot time of each lane that goes before all of less urgent ones."""
    own = asked.lane
    tags = {i: lanes[i].tag for i in range(3) if lanes[i].waiting or i == own}
    if not lanes[own].waiting:
        tags[own] = max(tags[own], min((tag for i, tag in tags.items() if i != own), default=tags[own]))
    least = min(tags.values())
    return [
        min(work[i], max(0, least + AHEAD - tags[i]) * lanes[i].share / asked.tokens * runs[i]) if i in tags else 0
        for i in range(3)
    ]
