"""What a chaos run says in the end, for people and as JSON."""

from collections import Counter

import msgspec
from msgspec import Struct, field

from tests.chaos.audit import Breach
from tests.chaos.history import History, Story
from tests.chaos.recovery import percentile
from tests.chaos.witness import Trace

SHOWN = 25
"""Breaches that the text shows; the JSON has all."""


class Recovered(Struct):
    count: int
    p50_s: float
    p99_s: float
    longest_s: float


class Report(Struct, kw_only=True):
    seed: int
    engine: str
    replicas: str
    duration_s: float
    """Of load and faults, without drain and audit."""
    drain_s: float
    """From the last fault to the last end that a client waited for."""
    faults: dict[str, int]
    faults_skipped: int
    """No process of the kind was up."""
    deaths: dict[str, int]
    """Processes that ended, by how."""
    tasks: dict[str, int]
    """By door."""
    ends: dict[str, int]
    """As their clients saw them."""
    broken_connections: int
    refusals: dict[str, int]
    """Of HTTP requests, by status: tried again, and taken later."""
    poisoned: dict[str, int]
    """Tasks that were asked to make trouble, by kind."""
    run_twice: int
    resets: int
    resumed: int
    quarantined: dict[str, int]
    cancel_p50_s: float
    cancel_p99_s: float
    recovery: dict[str, Recovered]
    bytes_before: int
    bytes_after: int
    bytes_kept: int
    breaches: list[Breach] = field(default_factory=list)

    @property
    def broken(self) -> Counter[str]:
        return Counter(breach.promise for breach in self.breaches)

    def text(self) -> str:
        deaths = _listed(self.deaths)
        lines = [
            f"seed {self.seed}, engine {self.engine}, {self.replicas}",
            f"{self.duration_s:.0f} s of load and faults, drained {self.drain_s:.1f} s after the last fault",
            "",
            f"faults             {sum(self.faults.values())}: {_listed(self.faults)}; skipped: {self.faults_skipped}",
            f"processes ended    {sum(self.deaths.values())}: {deaths}",
            f"tasks              {sum(self.tasks.values())}: {_listed(self.tasks)}",
            f"ends               {_listed(self.ends)}",
            f"trouble at doors   {self.broken_connections} connections broken, refusals {_listed(self.refusals)}",
            f"run more than once {self.run_twice} (resumed {self.resumed} times, started over {self.resets} times)",
            f"poisoned           {_listed(self.poisoned)}",
            f"quarantined        {_listed(self.quarantined)}",
            f"cancel to end      p50 {self.cancel_p50_s:.2f} s, p99 {self.cancel_p99_s:.2f} s",
            f"memory             {self.bytes_before} bytes before, {self.bytes_after} after",
            f"                   of which dead letters and keys of producers {self.bytes_kept}",
            "",
            f"recovery           {'':16} {'count':>6} {'p50':>8} {'p99':>8} {'longest':>8}",
        ]
        for kind, one in sorted(self.recovery.items()):
            lines.append(
                f"                   {kind:16} {one.count:6} {one.p50_s:6.2f} s {one.p99_s:6.2f} s {one.longest_s:6.2f} s"
            )
        lines += ["", *self._promises()]
        return "\n".join(lines)

    def _promises(self) -> list[str]:
        counts = self.broken
        named = ("nothing lost", "one terminal state", "one reply", "no gap, no repeat", "no garbled text")
        lines = [f"{promise:22} broken {counts[promise]} times" for promise in named]
        lines += [f"{promise:22} broken {count} times" for promise, count in counts.items() if promise not in named]
        lines += [f"  {breach.promise}: {breach.key}: {breach.what[:500]}" for breach in self.breaches[:SHOWN]]
        return [*lines, "BROKEN" if self.breaches else "all promises kept"]


def ends_of(history: History) -> dict[str, int]:
    ends: Counter[str] = Counter()
    for story in history.stories.values():
        states = {event.details["state"] for event in story.of("seen")}
        ends[" and ".join(sorted(states)) or "unknown"] += 1
    return dict(ends)


def recovered(seconds: dict[str, list[float]]) -> dict[str, Recovered]:
    return {
        kind: Recovered(len(values), percentile(values, 0.5), percentile(values, 0.99), max(values))
        for kind, values in seconds.items()
    }


def cancel_seconds(history: History) -> list[float]:
    found = []
    for story in history.stories.values():
        asked = next(story.of("cancelling"), None)
        end = next((e for e in story.of("seen") if e.details["state"] == "cancelled"), None)
        if asked and end:
            found.append(max(0.0, end.at_s - asked.at_s))
    return found


def tale(story: Story, traces: dict[str, Trace]) -> str:
    """Everything that is known about one ticket, for whoever looks for the bug."""
    lines = [msgspec.json.encode(story.ticket).decode()]
    lines += [f"  {event.at_s:9.3f} {event.what} {event.details}" for event in story.events]
    for id in sorted({event.details["id"] for event in story.events if event.details.get("id")}):
        if trace := traces.get(id):
            lines += [f"  bus of {id}", *(f"    {line}" for line in trace.story), f"  hash {trace.found}"]
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1])) or "none"
