"""A deployment in simulated time: a door, schedulers and workers, who call the scripts that the services call, as they do.

The policy is the scripts, on a real Redis. What is modelled is all around them: when tasks come, how long a message
takes, how fast an engine is, when a worker dies. Three things make the order of events what it is in a deployment:
  - every replica of the scheduler reads, admits and dispatches in steps of its own, and others come between them;
  - each wake-up reaches the replica that has waited longest, as Redis serves blocked readers;
  - workers read their streams, beat and finish in their own time.
"""

import heapq
import random
from collections.abc import Sequence

from msgspec import Struct, field

from shared.config import Config
from shared.ids import Place, derived_task_id
from shared.lifecycle import State
from tests.simulate.agenda import Agenda
from tests.simulate.calls import Calls
from tests.simulate.engine import Speed
from tests.simulate.faults import Fault
from tests.simulate.recording import Recording, Told
from tests.simulate.replica import Replica
from tests.simulate.trace import Row
from tests.simulate.workers import SimulatedWorker

POOL = "sim"
PLACE = Place(POOL, 0, 0, 0)
SETTLE_S = 15.0
"""After the last task has ended: longer than a lease and the housekeeping after it, so that nothing should be left."""
LOOK_AGAIN_S = 11.0
"""Longer than scripts take to ask again for the end of a task that is overdue."""


class Setup(Struct, frozen=True, kw_only=True):
    rows: Sequence[Row]
    config: Config
    workers: int = 4
    slots: int = 16
    speed: Speed = field(default_factory=Speed)
    faults: Sequence[Fault] = ()
    schedulers: int = 1
    seed: int = 1
    until_s: float | None = None
    """None: until every task has ended."""


class World:
    def __init__(self, setup: Setup, calls: Calls, agenda: Agenda) -> None:
        policy = setup.config.policy
        self.setup, self.calls, self.agenda = setup, calls, agenda
        self.dice = random.Random(f"world {setup.seed}")
        self.recording = Recording(
            seed=setup.seed,
            schedulers=setup.schedulers,
            weights={name: tenant.weight for name, tenant in policy.tenants.items()},
            shares={lane: rule.share for lane, rule in policy.lanes.items()},
        )
        self.recording.told = [Told(row, _id(setup.seed, number)) for number, row in enumerate(setup.rows)]
        self.numbers = {told.id: number for number, told in enumerate(self.recording.told)}
        self.open = len(setup.rows)
        """Tasks that may still end."""
        self.workers: list[SimulatedWorker] = []
        self.replicas = [Replica(self, number) for number in range(setup.schedulers)]
        self._idle = list(self.replicas)
        self.news = 0
        """Times that something may have come into `in`."""
        self._submitted = 0
        self._overdue: list[tuple[float, int]] = []

    async def run(self) -> None:
        """Until all has ended, or `until_s`."""
        self.begin()
        while self.open and await self._go_on(self.setup.until_s):
            pass
        self.recording.ended_s = self.agenda.now_s
        if not self.open:
            until_s = self.agenda.now_s + SETTLE_S
            while await self._go_on(until_s):
                pass
            self.recording.left = await self.calls.left()

    async def _go_on(self, until_s: float | None) -> bool:
        happening = self.agenda.next()
        if happening is None or (until_s is not None and self.agenda.now_s > until_s):
            return False
        await happening()
        return True

    def begin(self) -> None:
        for number in range(self.setup.workers):
            self.join(number, 0)
        for fault in self.setup.faults:
            self.agenda.at(fault.at_s, fault.happening(self))
        for replica in self.replicas:
            replica.begin()
        self._await_arrival()

    # -- the door

    def _await_arrival(self) -> None:
        if self._submitted < len(self.setup.rows):
            self.agenda.at(self.setup.rows[self._submitted].arrival_s, self._submit)

    async def _submit(self) -> None:
        """All that come in this millisecond, as the batcher of a door would gather them."""
        first = self._submitted
        while (
            self._submitted < len(self.setup.rows) and self.setup.rows[self._submitted].arrival_s <= self.agenda.now_s
        ):
            self._submitted += 1
        self._await_arrival()
        told = self.recording.told[first : self._submitted]
        for task, verdict in zip(told, await self.calls.submit(told), strict=True):
            self._note(task, *verdict)
        self.wake()

    def _note(self, task: Told, refusal: str, eta_s: float | None) -> None:
        task.refusal, task.eta_s = refusal, eta_s
        if refusal:
            self.open -= 1
        elif task.row.expires_in_s:
            heapq.heappush(self._overdue, (task.row.arrival_s + task.row.expires_in_s, self.numbers[task.id]))

    # -- what the others tell

    def wake(self) -> None:
        """There may be something in `in`."""
        self.news += 1
        if self._idle:
            self._idle.pop(0).wake()

    def rests(self, replica: Replica) -> None:
        self._idle.append(replica)

    def deliver(self) -> None:
        """Something was put into streams of workers."""
        for worker in self.workers:
            worker.look_soon()

    def ended(self, number: int, state: State) -> None:
        task = self.recording.told[number]
        if not task.state.terminal:
            task.state, task.ended_s = state, self.agenda.now_s
            self.open -= 1

    def join(self, place: int, generation: int) -> None:
        worker = SimulatedWorker(self, place, generation)
        self.workers.append(worker)
        worker.begin()
        self.note_slots()

    def leave(self, worker: SimulatedWorker) -> None:
        self.workers.remove(worker)
        self.note_slots()

    def note_slots(self) -> None:
        self.recording.slots.append((self.agenda.now_s, sum(worker.slots.total for worker in self.workers)))

    async def look_at_overdue(self) -> None:
        """Tasks that no worker ends: their deadline has passed while they waited."""
        now_s, looked = self.agenda.now_s, []
        while self._overdue and self._overdue[0][0] < now_s:
            number = heapq.heappop(self._overdue)[1]
            if not self.recording.told[number].state.terminal:
                looked.append(number)
        await self.look_at(looked)
        for number in looked:
            if not self.recording.told[number].state.terminal:
                heapq.heappush(self._overdue, (now_s + LOOK_AGAIN_S, number))

    async def look_at(self, numbers: Sequence[int]) -> None:
        told = self.recording.told
        for number, state in zip(numbers, await self.calls.states([told[n].id for n in numbers]), strict=True):
            if state.terminal:
                self.ended(number, state)


def _id(seed: int, number: int) -> str:
    return derived_task_id(PLACE, b"simulated", str(seed).encode(), str(number).encode())
