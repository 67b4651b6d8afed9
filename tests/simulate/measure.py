"""Figures of a recording: who had how much of what was contested, who waited how long, how busy the slots were."""

import heapq
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec import Struct

from shared.lifecycle import Lane, State
from tests.simulate.recording import Recording, Stint, Told

Window = tuple[float, float]
"""From, until (s)."""
Which = Callable[[Told], bool]

HOPS_S = 0.02
"""What a task takes from its submission to its start when a slot is free, at most."""


def every(task: Told) -> bool:
    return True


class Share(Struct, frozen=True):
    tenant: str
    weight: float
    tokens: float
    share: float
    ideal: float

    @property
    def error(self) -> float:
        """Relative to what it should have been."""
        return self.share / self.ideal - 1


class Waits(Struct, frozen=True):
    count: int
    p50_s: float
    p95_s: float
    p99_s: float
    longest_s: float


class Etas(Struct, frozen=True):
    """Of tasks that were accepted with a prediction, and started."""

    count: int
    median_s: float
    """Of the error without its sign."""
    p90_s: float
    bias_s: float
    """Mean of prediction minus wait."""
    close: float
    """Share that is right within a second or a quarter of the wait."""


def shares(recording: Recording, window: Window, tenants: Sequence[str]) -> list[Share]:
    """Of the tokens of `tenants` that were worked off in the window; a stint's tokens are spread evenly over it."""
    tokens = dict.fromkeys(tenants, 0.0)
    for stint in recording.stints:
        tenant = recording.told[stint.task].row.tenant
        if tenant in tokens:
            tokens[tenant] += stint.tokens * _overlap(window, (stint.began_s, stint.ended_s))
    weights = {tenant: recording.weights.get(tenant, 1.0) for tenant in tenants}
    total, heavy = sum(tokens.values()) or 1.0, sum(weights.values())
    return [Share(t, weights[t], tokens[t], tokens[t] / total, weights[t] / heavy) for t in tenants]


def contested(recording: Recording, tenants: Sequence[str], lane: Lane | None = None) -> Window:
    """The longest time in which each of them had a task that waited. Empty, if there is none."""
    waiting: dict[str, list[Window]] = {tenant: [] for tenant in tenants}
    for task in recording.told:
        if task.row.tenant in waiting and lane in (None, task.row.lane) and not task.refusal:
            waiting[task.row.tenant].append((task.row.arrival_s, left_s(recording, task)))
    together = [(0.0, recording.ended_s)]
    for windows in waiting.values():
        together = list(both(together, list(union(windows))))
    return max(together, key=lambda window: window[1] - window[0], default=(0.0, 0.0))


def left_s(recording: Recording, task: Told) -> float:
    """When it stopped waiting: it started, ended, or the run did."""
    return next((at_s for at_s in (task.started_s, task.ended_s) if at_s is not None), recording.ended_s)


def union(windows: Iterable[Window]) -> Iterator[Window]:
    begin_s, end_s = None, 0.0
    for first_s, last_s in sorted(windows):
        if begin_s is not None and first_s <= end_s:
            end_s = max(end_s, last_s)
            continue
        if begin_s is not None:
            yield begin_s, end_s
        begin_s, end_s = first_s, last_s
    if begin_s is not None:
        yield begin_s, end_s


def both(some: Sequence[Window], others: Sequence[Window]) -> Iterator[Window]:
    """Times that are in a window of each; both in order."""
    i = j = 0
    while i < len(some) and j < len(others):
        begin_s, end_s = max(some[i][0], others[j][0]), min(some[i][1], others[j][1])
        if begin_s < end_s:
            yield begin_s, end_s
        if some[i][1] < others[j][1]:
            i += 1
        else:
            j += 1


def waits(recording: Recording, which: Which = every) -> dict[Lane, Waits]:
    """Of tasks that started, by lane; lanes without any are left out."""
    found: dict[Lane, list[float]] = defaultdict(list)
    for task in recording.told:
        if task.waited_s is not None and which(task):
            found[task.row.lane].append(task.waited_s)
    return {lane: summary(found[lane]) for lane in Lane if found[lane]}


def summary(seconds: list[float]) -> Waits:
    seconds = sorted(seconds)
    p50_s, p95_s, p99_s = (quantile(seconds, share) for share in (0.5, 0.95, 0.99))
    return Waits(len(seconds), p50_s, p95_s, p99_s, seconds[-1])


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def busy(recording: Recording, step_s: float, *, which: Which = every) -> list[float]:
    """Mean number of slots in use, for each step of the run."""
    steps = [0.0] * (int(recording.ended_s / step_s) + 1)
    for stint in recording.stints:
        if which(recording.told[stint.task]):
            for step in range(int(stint.began_s / step_s), min(len(steps) - 1, int(stint.ended_s / step_s)) + 1):
                inside = min(stint.ended_s, (step + 1) * step_s) - max(stint.began_s, step * step_s)
                steps[step] += max(0.0, inside) / step_s
    return steps


def slots(recording: Recording, step_s: float) -> list[float]:
    """That were there in the middle of each step."""
    since = [at_s for at_s, _ in recording.slots]
    middles = [(step + 0.5) * step_s for step in range(int(recording.ended_s / step_s) + 1)]
    return [float(recording.slots[max(0, bisect_right(since, at_s) - 1)][1]) for at_s in middles]


def utilisation(recording: Recording, window: Window | None = None) -> float:
    """Slots in use of those that were there; by default while any task waited."""
    windows = [window] if window else list(waiting_windows(recording))
    used = sum(
        (stint.ended_s - stint.began_s) * _overlap(window, (stint.began_s, stint.ended_s))
        for window, stint in _pairs(windows, recording)
    )
    there = 0.0
    for (at_s, count), (until_s, _) in zip(
        recording.slots, [*recording.slots[1:], (recording.ended_s, 0)], strict=True
    ):
        there += count * sum(max(0.0, min(w[1], until_s) - max(w[0], at_s)) for w in windows)
    return used / there if there else 0.0


def waiting_windows(recording: Recording) -> Iterator[Window]:
    """Times in which some task waited, and not for messages alone."""
    waited = ((task.row.arrival_s + HOPS_S, left_s(recording, task)) for task in recording.told if not task.refusal)
    return union((begin_s, end_s) for begin_s, end_s in waited if begin_s < end_s)


def _pairs(windows: Sequence[Window], recording: Recording) -> Iterator[tuple[Window, Stint]]:
    ends = [window[1] for window in windows]
    for stint in recording.stints:
        for window in windows[bisect_right(ends, stint.began_s) :]:
            if window[0] >= stint.ended_s:
                break
            yield window, stint


def etas(recording: Recording) -> Etas | None:
    """None: nothing was predicted."""
    pairs = [
        (t.eta_s, t.waited_s)
        for t in recording.told
        if not t.refusal and t.eta_s is not None and t.waited_s is not None
    ]
    if not pairs:
        return None
    errors = sorted(abs(eta_s - waited_s) for eta_s, waited_s in pairs)
    close = sum(abs(eta_s - waited_s) <= max(1.0, waited_s / 4) for eta_s, waited_s in pairs)
    bias_s = sum(eta_s - waited_s for eta_s, waited_s in pairs) / len(pairs)
    return Etas(len(pairs), quantile(errors, 0.5), quantile(errors, 0.9), bias_s, close / len(pairs))


def overtaken(recording: Recording, after_s: float = HOPS_S) -> list[int]:
    """For each interactive task that came when no other one waited, how many tasks of other lanes started before it did. What
    a message takes is granted."""
    others = sorted(
        t.started_s for t in recording.told if t.row.lane is not Lane.INTERACTIVE and t.started_s is not None
    )
    counts, waits_until_s = [], 0.0
    for task in recording.told:
        if task.row.lane is Lane.INTERACTIVE and task.started_s is not None:
            if task.row.arrival_s > waits_until_s:
                before = bisect_left(others, task.started_s) - bisect_right(others, task.row.arrival_s + after_s)
                counts.append(max(0, before))
            waits_until_s = max(waits_until_s, task.started_s)
    return counts


def longest_waits(recording: Recording, most: int = 3) -> list[Told]:
    return heapq.nlargest(most, (t for t in recording.told if t.waited_s is not None), key=lambda t: t.waited_s or 0.0)


def unfinished(recording: Recording) -> list[Told]:
    return [t for t in recording.told if not t.refusal and not t.state.terminal]


def refusals(recording: Recording) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for task in recording.told:
        if task.refusal:
            found[task.refusal] += 1
    return dict(found)


def states(recording: Recording) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for task in recording.told:
        if not task.refusal:
            found[task.state if task.state.terminal else State.PENDING] += 1
    return dict(found)


def _overlap(window: Window, stint: Window) -> float:
    """Share of the stint that lies in the window."""
    length_s = stint[1] - stint[0]
    inside_s = min(window[1], stint[1]) - max(window[0], stint[0])
    return max(0.0, inside_s) / length_s if length_s > 0 else 0.0
