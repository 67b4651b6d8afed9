"""One shard as plain Python: what Redis keeps, in the words of design.md, and what several scripts do alike.

Two things the model is told instead of computing them: the time (a task is due when a test says so), and what dispatch chose,
of which it only knows what it may choose.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.inference.scripts import NO_SLOTS, Slots
from shared.config import Limits
from shared.lifecycle import Lane, State, check_transition

Said = tuple[object, ...]
"""An event: its type, its attempt, and what it says of chunks."""
Due = dict[str, bool]
"""A sorted set by time: ids, and whether their time has come."""
MADE_UNKNOWN = 256
"""Tokens of an answer whose request names no limit."""


@dataclass
class Task:
    id: str
    lane: Lane = Lane.NORMAL
    tenant: str = "default"
    session: str = ""
    replies: bool = False
    metered: bool = False
    owes: bool = False
    tokens_in: int = 10
    tokens_out: int = 0
    place_ms: int = 0
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

    @property
    def most_tokens(self) -> int:
        return self.tokens_in + (self.tokens_out or MADE_UNKNOWN)

    @property
    def place(self) -> tuple[int, str]:
        """Where it stands among the waiting tasks of its tenant."""
        return self.place_ms, self.id

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
    lane: str = ""
    entry: bytes = b""
    """Its id in the stream, once it was seen."""


@dataclass
class Announced:
    slots: Slots = NO_SLOTS
    silent: bool = False


@dataclass
class Shard:
    limits: Limits
    tasks: dict[str, Task] = field(default_factory=dict)
    tombstones: set[str] = field(default_factory=set)
    arrivals: list[Entry] = field(default_factory=list)
    backlogs: dict[tuple[Lane, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    turns: dict[Lane, set[str]] = field(default_factory=lambda: {lane: set() for lane in Lane})
    """Tenants that dispatch looks at."""
    running: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Of each tenant: what is handed out or runs."""
    caps: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """The most that a tenant may run; 0: any number."""
    late: set[str] = field(default_factory=set)
    """Tenants whose cap was raised: they may have to wait for an end before they take turns."""
    hollow: set[tuple[Lane, str]] = field(default_factory=set)
    """Backlogs that were emptied by no script: their tenants take turns still."""
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

    # -- the waiting order

    def is_waiting(self, task: Task) -> bool:
        """Not in the hands of a worker."""
        return not task.state.terminal and task.id not in self.running[task.tenant]

    @property
    def waiting(self) -> Counter[str]:
        """The counts, by the names of their fields."""
        counts = Counter[str]()
        for task in filter(self.is_waiting, self.tasks.values()):
            counts[f"n:{task.tenant}"] += 1
            counts[f"l:{task.lane}"] += 1
            counts[f"b:{task.tenant}"] += task.most_tokens if task.lane is Lane.BATCH else 0
        return +counts

    @property
    def held(self) -> Counter[str]:
        """Work entries of the lanes that are counted, by worker and lane."""
        entries = ((name, entry.lane) for name, work in self.work.items() for entry in work)
        return Counter(f"{name} {lane}" for name, lane in entries if lane in (Lane.NORMAL, Lane.BATCH))

    def is_at_cap(self, tenant: str) -> bool:
        return 0 < self.caps[tenant] <= len(self.running[tenant])

    def take_turns(self, lane: Lane, tenant: str) -> None:
        if not self.is_at_cap(tenant):
            self.turns[lane].add(tenant)

    def rest(self, lane: Lane, tenant: str) -> None:
        self.turns[lane].discard(tenant)
        self.hollow.discard((lane, tenant))

    def line_up(self, task: Task) -> None:
        backlog = self.backlogs[task.lane, task.tenant]
        if task.id not in backlog:
            backlog.add(task.id)
            self.hollow.discard((task.lane, task.tenant))
            self.take_turns(task.lane, task.tenant)

    def step_out(self, task: Task) -> None:
        self.later.pop(task.id, None)
        backlog = self.backlogs[task.lane, task.tenant]
        if task.id in backlog:
            backlog.remove(task.id)
            if not backlog:
                self.rest(task.lane, task.tenant)

    def let_go(self, task: Task) -> bool:
        if task.id not in self.running[task.tenant]:
            return False
        self.running[task.tenant].remove(task.id)
        self.late.discard(task.tenant)
        for lane in Lane:
            if self.backlogs[lane, task.tenant]:
                self.take_turns(lane, task.tenant)
        return True

    def forgotten(self) -> Iterator[str]:
        """Whoever waits and may run takes turns; whoever takes turns waits."""
        for (lane, tenant), backlog in self.backlogs.items():
            takes_turns = tenant in self.turns[lane]
            if backlog and not takes_turns and not self.is_at_cap(tenant) and tenant not in self.late:
                yield f"{tenant} waits in lane {lane}, and takes no turns"
            if not backlog and takes_turns and (lane, tenant) not in self.hollow:
                yield f"{tenant} takes turns in lane {lane}, and nothing of it waits there"

    # -- ways of a task

    def end(self, task: Task, state: State, *, by_worker: bool = False) -> None:
        """The one way into a terminal state. An owner stays only where its own call may come again."""
        if not self.let_go(task):
            self.step_out(task)
        check_transition(task.id, task.state, state)
        task.state, task.owner = state, task.owner if by_worker else ""
        task.say("finished", task.attempts, task.last, state)
        for index in (self.leases, self.expiry, self.attached):
            index.pop(task.id, None)
        self.outbox[task.id] += task.replies or task.metered

    def requeue(self, task: Task, why: str, *, pause: bool = False) -> None:
        task.remember(why)
        if task.state is State.PROCESSING:
            check_transition(task.id, task.state, State.PENDING)
        task.state, task.owner, task.worker = State.PENDING, "", ""
        task.epoch += 1
        self.leases.pop(task.id, None)
        self.later.pop(task.id, None)
        self.let_go(task)
        if pause:
            self.later[task.id] = False
        else:
            self.line_up(task)

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
        """Where a live task waits or runs: exactly one, or it is astray. What was put back into its line may be in `in` too."""
        if task.state is State.PROCESSING:
            return ["leased"] * (task.id in self.leases)
        handed = [f"work of {name}" for name, work in self.work.items() if is_current(task, work)]
        waiting = [f"{lane} of {tenant}" for (lane, tenant), ids in self.backlogs.items() if task.id in ids]
        places = [*handed, *waiting, *["later"] * (task.id in self.later)]
        return places or ["in"] * any(entry.task == task.id for entry in self.arrivals)


def is_current(task: Task, work: list[Entry]) -> bool:
    return any(entry.task == task.id and entry.epoch == task.epoch for entry in work)


def due(index: Due) -> list[str]:
    return sorted(id for id, is_due in index.items() if is_due)
