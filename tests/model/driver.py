"""Real scripts and the model in lockstep: each step runs both, compares their verdicts, then all that they have left behind."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

from msgspec.structs import astuple, replace

from services.inference.scripts import (
    Hand,
    Owner,
    Release,
    Running,
    Slots,
    beat,
    emit,
    finish,
    rebase,
    release,
    retire,
    start,
)
from services.ingress.attendance import ATTEND
from services.scheduler.scripts import Arrival, Look, admit, dispatch, due, reap, repair
from shared.bus.client import Bus
from shared.cancel import cancel
from shared.config import Config, Limits
from shared.ids import new_nonce
from shared.keys import WORKERS
from shared.lifecycle import Lane, State
from shared.submit import ATTACHED_MS, submit
from tests.model import doors, observed, scheduler, worker
from tests.model.lifecycle import Shard, Task
from tests.model.scheduler import Asked, Chosen
from tests.model.worker import Fence, Hold, Range
from tests.support import tasks
from tests.support.tasks import SHARD

LIMITS = Limits(backlog=8, crashes=2, failures=1, lease_s=600, results_kept_s=600, log_kept_s=600)
"""Small, so that they are reached."""
CONFIG = Config(pools=tasks.CONFIG.pools, limits=LIMITS)


QUEUED_LIMIT, BATCH_LIMIT = 5, 40_000
"""Of every tenant: tasks, tokens."""
TENANTS = {"lions": (3.0, 0), "mice": (1.0, 2), "default": (0.5, 1)}
"""Weight, and the most that may run at once when a test begins; 0: any number."""


@dataclass(frozen=True)
class Wish:
    """What a task asks for beside its answer."""

    tenant: str = "lions"
    lane: Lane = Lane.NORMAL
    attached: bool = False
    replies: bool = False
    session: str = ""
    later: bool = False
    owes: bool = False
    metered: bool = False
    tokens_out: int = 0


@dataclass
class Run:
    """What a worker remembers of a task, whether it still is its own or not."""

    owner: Owner
    hand: Hand
    attempt: int = 0
    """0: it was never started."""
    made: int = 0

    @property
    def fence(self) -> Fence:
        return Fence(self.owner.worker, self.owner.nonce)

    @property
    def hold(self) -> Hold:
        return Hold(self.hand.id, self.hand.epoch, self.hand.entry)

    def range(self, first: int, count: int) -> Range:
        return Range(self.attempt, first, first + count - 1)


def expect(found: object, expected: object) -> None:
    assert found == expected, f"the script answers {found}, the model {expected}"


class Driver:
    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.model = Shard(LIMITS)
        self.owners: list[Owner] = []
        self.read: list[Arrival] = []
        """Arrivals that some scheduler was given."""
        self.runs: list[Run] = []
        self.astray: set[str] = set()
        """What was taken from its place by no script."""
        self._seen = observed.Observed(bus, SHARD)

    async def begin(self) -> None:
        for name, (weight, cap) in TENANTS.items():
            await self.set_terms(name, weight, cap)

    # -- clients

    async def submit(self, id: str, wish: Wish) -> None:
        made = tasks.item(
            id,
            lane=wish.lane,
            tenant=wish.tenant,
            attached=wish.attached,
            reply_to="orders" if wish.replies else "",
            session=wish.session,
            starts_in_ms=600_000 if wish.later else 0,
            tokens_out=wish.tokens_out,
            queued_limit=QUEUED_LIMIT,
            batch_limit=BATCH_LIMIT,
            metered="1" if wish.metered else "",
            owes="1" if wish.owes else "",
        )
        task = Task(id, wish.lane, wish.tenant, wish.session, wish.replies, wish.metered, wish.owes)
        task.tokens_out = wish.tokens_out
        limits = {"queued_limit": QUEUED_LIMIT, "batch_limit": BATCH_LIMIT}
        expected = doors.submit(self.model, task, attached=wish.attached, later=wish.later, **limits)
        expect(list(await submit(self.bus, SHARD, CONFIG, [made])), [expected])
        await self.compare()

    async def cancel(self, ids: Sequence[str]) -> None:
        expected = [doors.cancel(self.model, id) for id in ids]
        expect(list(await cancel(self.bus, SHARD, LIMITS, ids)), expected)
        await self.compare()

    async def attend(self, ids: Sequence[str]) -> None:
        expected = doors.attend(self.model, ids)
        expect(await self.bus.run(ATTEND, [SHARD.attached], [ATTACHED_MS, *ids]), expected)
        await self.compare()

    # -- schedulers

    async def read_arrivals(self) -> None:
        self.read += await tasks.arrivals(self.bus)

    async def admit(self, arrivals: Sequence[Arrival], quota: str = "") -> None:
        asked = [Asked(arrival.id, entry=arrival.entry, quota=quota) for arrival in arrivals]
        expected, before = scheduler.admit(self.model, asked), self._seen.clocks
        asking = [replace(arrival, quota=quota) for arrival in arrivals]
        expect(await admit(self.bus, SHARD, LIMITS, asking), expected)
        await self.compare()
        for lane, turns in self._seen.clocks.turns.items():
            early = {name for name in turns.keys() - before.turns[lane] if turns[name] < before.now[lane]}
            assert not early, f"{early} come into the turns of {lane} before its time: {before}"

    async def dispatch(self, most: int) -> None:
        model, before = deepcopy(self.model), self._seen.clocks
        answer = await dispatch(self.bus, SHARD, CONFIG, most)
        known = {entry.entry for work in self.model.work.values() for entry in work}
        chosen = {
            item[b"t"].decode(): name
            for name in self.model.work
            for entry, item in await tasks.entries(self.bus, SHARD.work(name))
            if entry not in known
        }
        put_off = await self.bus.commands.call("ZRANGE", SHARD.later, 0, -1)
        turns = [await self.bus.commands.call("ZRANGE", key, 0, -1) for key in SHARD.turns]
        done = Chosen(
            chosen,
            {id.decode() for id in put_off} - self.model.later.keys(),
            {lane: {name.decode() for name in names} for lane, names in zip(Lane, turns, strict=True)},
        )
        expect(astuple(answer), scheduler.dispatch(self.model, most, done))
        await self.compare()
        if most == len(chosen) == 1 and not done.aside:
            ((id, worker),) = chosen.items()
            scheduler.check_turn(model, before, model.tasks[id], worker)

    async def set_terms(self, tenant: str, weight: float, cap: int) -> None:
        """The policy has changed."""
        before = self.model.caps[tenant]
        if before and (cap == 0 or cap > before):
            self.model.late.add(tenant)
        self.model.caps[tenant] = cap
        await self.bus.commands.call("HSET", SHARD.tenants, tenant, f"{weight} {cap}")

    async def reap(self) -> None:
        expect(astuple(await reap(self.bus, SHARD, LIMITS)), scheduler.reap(self.model))
        await self.compare()

    async def due(self) -> None:
        expect(astuple(await due(self.bus, SHARD, LIMITS)), scheduler.pass_time(self.model))
        await self.compare()

    async def repair(self, id: str) -> None:
        """Two looks with nothing between them."""
        before = ""
        for _ in range(2):
            expected = scheduler.repair(self.model, id, before)
            (verdict,) = await repair(self.bus, SHARD, LIMITS, [Look(id, before)])
            expect(verdict, expected)
            before = verdict
        if self.model.leases.get(id):
            await self.bus.commands.call("ZADD", SHARD.leases, 1, id)  # a moment passes
        self.astray.discard(id)
        await self.compare()

    # -- workers

    async def join(self, slots: Slots) -> None:
        self.owners.append(Owner(SHARD, f"w{len(self.owners)}", new_nonce(), LIMITS))
        await self.beat(self.owners[-1], slots)

    def double(self, run: Run) -> Run:
        self.runs.append(Run(replace(run.owner, nonce=new_nonce()), run.hand, run.attempt, run.made))
        return self.runs[-1]

    async def beat(self, owner: Owner, slots: Slots) -> None:
        mine = list({run.hand.id: run for run in self.runs if run.owner is owner}.values())
        expected = worker.beat(self.model, Fence(owner.worker, owner.nonce), slots, [run.hold for run in mine])
        held = [(run.hand.id, run.hand.epoch) for run in mine]
        expect(await beat(self.bus, owner, slots, b"{}", held), expected)
        await self.compare()

    async def take(self, owner: Owner) -> None:
        """Read the work stream; words to stop are taken note of and cleared."""
        if owner.worker not in self.model.work:
            return
        stream = SHARD.work(owner.worker)
        reply = await self.bus.commands.call("XREADGROUP", "GROUP", WORKERS, owner.worker, "STREAMS", stream, ">")
        for entry, flat in (reply or [[stream, []]])[0][1]:
            item = dict(zip(flat[::2], flat[1::2], strict=True))
            if b"stop" in item:
                await self.bus.commands.call("XACK", stream, WORKERS, entry)
                await self.bus.commands.call("XDEL", stream, entry)
                self.model.clear(owner.worker, entry)
            else:
                self.runs.append(Run(owner, Hand(item[b"t"].decode(), int(item[b"e"]), entry)))
        await self.compare()

    async def start(self, run: Run) -> str:
        expected = worker.start(self.model, run.fence, run.hold)
        (verdict,) = await start(self.bus, run.owner, [run.hand])
        if isinstance(verdict, Running):
            expect((verdict.attempt, verdict.published), expected)
            if verdict.attempt != run.attempt:
                run.attempt, run.made = verdict.attempt, verdict.published
        else:
            expect(verdict, expected)
        await self.compare()
        return "stale" if isinstance(verdict, str) else "run"

    async def rebase(self, run: Run, behind: int) -> None:
        expected = worker.rebase(self.model, run.fence, run.hold, run.attempt, behind)
        verdict = await rebase(self.bus, run.owner, run.hand, attempt=run.attempt, behind=behind)
        expect(verdict, expected)
        if verdict == "ok":
            run.made = self.model.tasks[run.hand.id].last
        await self.compare()

    async def emit(self, run: Run, first: int, count: int) -> None:
        made = run.range(first, count)
        expected = worker.emit(self.model, run.fence, run.hold, made)
        emission = tasks.emission(run.hand, made.first, made.last, attempt=run.attempt)
        expect(await emit(self.bus, run.owner, [emission]), [expected])
        if expected == "ok":
            run.made = max(run.made, made.last)
        await self.compare()

    async def finish(self, run: Run, first: int, count: int, state: State, tokens: int = 20) -> str:
        tail = run.range(first, count)
        expected = worker.finish(self.model, run.fence, run.hold, tail, state)
        ending = tasks.ending(run.hand, tail.first, tail.last, attempt=run.attempt, state=state, tokens=tokens)
        expect(await finish(self.bus, run.owner, [ending]), [expected])
        await self.compare()
        return expected

    async def release(self, run: Run, first: int, count: int, charge: str) -> str:
        tail, why = run.range(first, count), {"crash": "engine_died", "none": "drained"}.get(charge, "overloaded")
        expected = worker.release(self.model, run.fence, run.hold, tail, charge, why)
        chunks = tasks.chunks_event(tail.first, tail.last, run.attempt) if count else b""
        end = tasks.finished_event(tail.last, run.attempt, State.FAILED)
        hand = run.hand
        item = Release(
            *(hand.id, hand.epoch, hand.entry, tail.first, tail.last, chunks, b"", 10 + tail.last),
            *(charge, why, 1000, 200, b"{}", end),
        )
        expect(await release(self.bus, run.owner, [item]), [expected])
        await self.compare()
        return expected

    async def retire(self, owner: Owner, *, running: bool) -> None:
        expected = worker.retire(self.model, Fence(owner.worker, owner.nonce), running=running)
        expect(astuple(await retire(self.bus, owner, running=running)), expected)
        await self.compare()

    # -- time and mishap

    async def make_due(self, index: str, id: str) -> None:
        await self.bus.commands.call("ZADD", SHARD.base + index, 1, id)
        if index == "expiry":
            await self.bus.commands.call("HSET", SHARD.task(id), "deadline_ms", 1)
            self.model.tasks[id].overdue = True
        getattr(self.model, index)[id] = True

    async def silence(self, owner: Owner) -> None:
        """Its last beat was long ago."""
        announced = self.model.workers[owner.worker]
        slots = " ".join(map(str, astuple(announced.slots)))
        await self.bus.commands.call("HSET", SHARD.workers, owner.worker, f"1 {slots} {{}}")
        announced.silent = True

    async def lose_place(self, id: str) -> None:
        """What only lost data or a foreign hand can bring about."""
        task = self.model.tasks[id]
        for key in (SHARD.leases, SHARD.later, SHARD.backlog(task.lane, task.tenant)):
            await self.bus.commands.call("ZREM", key, id)
        for index in (self.model.leases, self.model.later):
            index.pop(id, None)
        backlog = self.model.backlogs[task.lane, task.tenant]
        backlog.discard(id)
        if not backlog and task.tenant in self.model.turns[task.lane]:
            self.model.hollow.add((task.lane, task.tenant))
        self.astray.add(id)

    # -- comparing

    async def compare(self) -> None:
        ids, names = [*self.model.tasks, *self.model.tombstones], [owner.worker for owner in self.owners]
        await self._seen.read(ids, names, TENANTS)
        faults = observed.differences(observed.told(self.model), self._seen.view)
        faults += [*self._seen.faults(), *self.model.forgotten()]
        assert not faults, "\n".join(faults)
        for entry, id in zip(self.model.arrivals, self._seen.arrivals, strict=True):
            entry.entry = id
        for name, work in self.model.work.items():
            for entry, id in zip(work, self._seen.work[name], strict=True):
                entry.entry = id
        for task in self.model.tasks.values():
            task.place_ms = self._seen.place[task.id]
            places = self.model.places(task)
            assert task.state.terminal or len(places) == 1 or task.id in self.astray, f"{task.id} is in {places}"
