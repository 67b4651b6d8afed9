"""How long after a fault an affected task made progress.

Of a fault that hits one worker (SIGKILL, SIGSTOP beyond the lease, …) the affected tasks are those it held, each counts, and
its progress is the next event that the bus has of it: its start on another worker, or its end. Of any other fault they are all
tasks that had not ended, the fault counts once, and its progress is the next event of any of them. Poison is left out: it may
hang on purpose.
"""

from collections import defaultdict

from msgspec import Struct

from shared.clock import now_ms
from tests.chaos.history import History


class Wound(Struct):
    kind: str
    at_ms: int
    ids: set[str]
    each: bool


class Recovery:
    def __init__(self, history: History) -> None:
        self._history = history
        self._open: list[Wound] = []
        self._found: list[tuple[str, str, float]] = []
        """Kind of fault, task, seconds."""

    def on_fault(self, kind: str, ids: list[str], *, each: bool) -> None:
        if ids:
            self._open.append(Wound(kind, now_ms(), set(ids), each))

    def on_event(self, id: str, at_ms: int) -> None:
        for wound in self._open:
            if id in wound.ids and at_ms > wound.at_ms:
                seconds = (at_ms - wound.at_ms) / 1000
                self._found.append((wound.kind, id, seconds))
                self._history.note(self._history.by_id.get(id, id), "recovered", of=wound.kind, seconds=seconds)
                wound.ids = wound.ids - {id} if wound.each else set()
        self._open = [wound for wound in self._open if wound.ids]

    def seconds(self) -> dict[str, list[float]]:
        """By kind of fault. Whose task it was, and whether it was poison, may be known only in the end."""
        found: dict[str, list[float]] = defaultdict(list)
        for kind, id, seconds in self._found:
            story = self._history.stories.get(self._history.by_id.get(id, ""))
            if story is None or not story.ticket.poison:
                found[kind].append(seconds)
        return found


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0
