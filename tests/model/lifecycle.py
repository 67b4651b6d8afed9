"""One shard as plain Python: what Redis keeps, in the words of design.md, and what several scripts do alike.

Two things the model is told instead of computing them: the time (a task is due when a test says so), and which worker dispatch
chose among equals.
"""

from collections import Counter
from dataclasses import dataclass, field

from shared.config import Limits
from shared.lifecycle import Lane, State, check_transition

Said = tuple[object, ...]
"""An event: its type, its attempt, and what it says of chunks."""
Due = dict[str, bool]
"""A sorted set by time: ids, and whether their time has come."""


@dataclass
class Task:
    id: str
    lane: Lane = Lane.NORMAL
    session: str = ""
    replies: bool = False
    created_at_ms: int = 0
    state: State = State.PENDING
    epoch: int = 0
    attempts: int = 0
    crashes: int = 0
    failures: int = 0
    last: int = 0
    behind: int = -1
    """Chunks that the attempt goes on behind; -1 before the first."""
    owner: str = ""
    worker: str = ""
    stop: str = ""
    rebased: tuple[int, int] = (0, 0)
    overdue: bool = False
    """Its deadline has passed."""
    history: list[Said] = field(default_factory=list)
    """Of each ended attempt: number, worker, why, chunks."""
    log: list[Said] = field(default_factory=list)
    live: list[Said] = field(default_factory=list)
    """The log, and what is said on the bus alone."""

    def say(self, *event: object) -> None:
        self.log.append(event)
        self.live.append(event)

    def remember(self, why: str) -> None:
        """The attempt that runs has ended, and is not the last one."""
        if self.state is State.PROCESSING:
            self.history.append((self.attempts, self.worker, why, self.last))


@dataclass
class Entry:
    """Of `in` (an id, or empty for a wake-up), or of a work stream (a hand-out, or `stop`: the word its task is to end as)."""

    task: str
    epoch: int = 0
    stop: str = ""
    entry: bytes = b""
    """Its id in the stream, once it was seen."""


@dataclass
class Announced:
    slots: int
    silent: bool = False


@dataclass
class Shard:
    limits: Limits
    tasks: dict[str, Task] = field(default_factory=dict)
    tombstones: set[str] = field(default_factory=set)
    arrivals: list[Entry] = field(default_factory=list)
    backlogs: dict[Lane, set[str]] = field(default_factory=lambda: {lane: set() for lane in Lane})
    leases: Due = field(default_factory=dict)
    expiry: Due = field(default_factory=dict)
    attached: Due = field(default_factory=dict)
    later: Due = field(default_factory=dict)
    workers: dict[str, Announced] = field(default_factory=dict)
    work: dict[str, list[Entry]] = field(default_factory=dict)
    suspects: dict[str, tuple[str, int]] = field(default_factory=dict)
    outbox: Counter[str] = field(default_factory=Counter)
    dead: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(id, code)"""

    def wake(self, wanted: object = True) -> None:
        if wanted:
            self.arrivals.append(Entry(""))

    def end(self, task: Task, state: State, *, by_worker: bool = False) -> None:
        """The one way into a terminal state. An owner stays only where its own call may come again."""
        if task.state is State.PENDING:
            self.later.pop(task.id, None)
            self.backlogs[task.lane].discard(task.id)
        check_transition(task.id, task.state, state)
        task.state, task.owner = state, task.owner if by_worker else ""
        task.say("finished", task.attempts, task.last, state)
        for index in (self.leases, self.expiry, self.attached):
            index.pop(task.id, None)
        self.outbox[task.id] += task.replies

    def requeue(self, task: Task, why: str, *, pause: bool = False) -> None:
        task.remember(why)
        if task.state is State.PROCESSING:
            check_transition(task.id, task.state, State.PENDING)
        task.state, task.owner, task.worker = State.PENDING, "", ""
        task.epoch += 1
        self.leases.pop(task.id, None)
        self.later.pop(task.id, None)
        if pause:
            self.later[task.id] = False
        else:
            self.backlogs[task.lane].add(task.id)

    def survive(self, task: Task, why: str) -> str:
        """One more worker has died on it."""
        if task.stop:
            self.end(task, State(task.stop))
            return task.stop
        task.crashes += 1
        if task.crashes < self.limits.crashes:
            self.requeue(task, why)
            return "again"
        task.remember(why)
        self.end(task, State.FAILED)
        self.dead[task.id, "task_quarantined"] += 1
        return "quarantined"

    def ask_to_stop(self, task: Task, word: str) -> None:
        if not task.stop:
            task.stop = word
            if task.worker in self.work:
                self.work[task.worker].append(Entry(task.id, stop=word))

    def clear(self, worker: str, entry: bytes) -> None:
        if worker in self.work:
            self.work[worker] = [kept for kept in self.work[worker] if kept.entry != entry]

    def forget(self, worker: str) -> None:
        self.work.pop(worker, None)
        self.workers.pop(worker, None)
        self.suspects.pop(worker, None)

    def places(self, task: Task) -> list[str]:
        """Where a live task waits or runs: exactly one, or it is astray."""
        if task.state is State.PROCESSING:
            return ["leased"] * (task.id in self.leases)
        handed = [f"work of {name}" for name, work in self.work.items() if is_current(task, work)]
        waiting = [lane for lane, ids in self.backlogs.items() if task.id in ids]
        arriving = [True for entry in self.arrivals if entry.task == task.id and task.epoch == 0]
        return [*handed, *waiting, *["later"] * (task.id in self.later), *["in"] * bool(arriving)]


def is_current(task: Task, work: list[Entry]) -> bool:
    return any(entry.task == task.id and entry.epoch == task.epoch for entry in work)


def due(index: Due) -> list[str]:
    return sorted(id for id, is_due in index.items() if is_due)
