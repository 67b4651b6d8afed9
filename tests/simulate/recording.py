"""What happened in a run: every task, every stint of it on a worker, and how many slots there were."""

from msgspec import Struct, field

from shared.lifecycle import State
from tests.simulate.trace import Row


class Told(Struct):
    """The story of one task. Times are seconds of the simulation."""

    row: Row
    id: str
    refusal: str = ""
    """Why it was not taken: the verdict of submit.lua without its numbers."""
    eta_s: float | None = None
    """The wait that was predicted when it was submitted, of tasks that were started, or refused as too late."""
    started_s: float | None = None
    """First; None: never."""
    ended_s: float | None = None
    state: State = State.PENDING
    lost: int = 0
    """Workers that died with it, or were given up."""

    @property
    def waited_s(self) -> float | None:
        return None if self.started_s is None else self.started_s - self.row.arrival_s


class Stint(Struct):
    """One run of a task on a worker."""

    task: int
    """Its place in the trace."""
    worker: str
    began_s: float
    ended_s: float = 0.0
    tokens: int = 0
    """Of the prompt and of the answer; of a stint that broke off, as far as it came."""
    counted: bool = False
    """Its end was the end of the task."""


class Recording(Struct):
    seed: int
    schedulers: int
    weights: dict[str, float]
    """Of the tenants that the policy names."""
    shares: dict[str, float]
    """Of lanes."""
    told: list[Told] = field(default_factory=list)
    stints: list[Stint] = field(default_factory=list)
    slots: list[tuple[float, int]] = field(default_factory=list)
    """(since when, how many), of all workers that are there, silent ones included."""
    counts: dict[str, int] = field(default_factory=dict)
    """How often each script was called, and what went wrong."""
    left: list[str] = field(default_factory=list)
    """Keys of the shard that must be empty when all tasks have ended, and are not."""
    ended_s: float = 0.0
    took_s: float = 0.0
    """Of real time."""

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by
