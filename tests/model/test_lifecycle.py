"""Hypothesis drives model and scripts in lockstep, by rivals that die, wake up and repeat themselves; then all is settled and
audited. A failure prints its steps. A long search: `pytest tests/model --hypothesis-profile=deep`.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from msgspec.structs import astuple

from services.inference.scripts import Owner, Slots
from shared.bus.client import Bus
from shared.lifecycle import Lane, State
from tests.model.driver import LIMITS, TENANTS, Driver, Run, Wish
from tests.model.scheduler import rooms
from tests.model.worker import held
from tests.support import audit, redis
from tests.support.tasks import SHARD

EXAMPLES = 80
"""Ten seconds a version, twenty on a busy machine."""
T = TypeVar("T")
REPLIED = Wish(replies=True, session="s")
FEW = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4])
"""Picks one of the newest; small numbers, so that steps meet."""
SKEW = st.sampled_from([0, 0, 0, 0, -1, 1])
"""How far a range is from where it must begin."""
CHARGES = ("failure", "crash", "none")
WISHES = st.builds(
    Wish,
    tenant=st.sampled_from([*TENANTS, "lions"]),
    lane=st.sampled_from(Lane),
    attached=st.booleans(),
    later=st.sampled_from([False, False, False, True]),
    owes=st.booleans(),
    metered=st.booleans(),
    tokens_out=st.sampled_from([0, 100, 30_000]),
)
SLOTS = st.builds(
    lambda *slots: Slots(*sorted(slots, reverse=True)), st.integers(1, 4), st.integers(0, 4), st.integers(0, 4)
)
"""No more of the less urgent lanes than of all."""
STATES = (State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED)


def newest(items: list[T], n: int) -> T:
    return items[-1 - n % len(items)]


class Lifecycle(RuleBasedStateMachine):
    runner: asyncio.Runner
    bus: Bus
    url: str

    def __init__(self) -> None:
        super().__init__()
        redis.flush(self.url)
        self.driver = Driver(self.bus)
        self.model = self.driver.model
        self.ids: list[str] = []
        self.broken = False

    def do(self, *steps: Coroutine[Any, Any, object]) -> None:
        self.broken = True
        for step in steps:
            self.runner.run(step)
        self.broken = False

    def new_id(self) -> str:
        """Ids of one time sort as they were made."""
        self.ids.append(f"smol.0.0.0.{len(self.ids):026d}")
        return self.ids[-1]

    def worker(self, n: int) -> Owner:
        return newest(self.driver.owners, n)

    def run(self, n: int) -> Run | None:
        """First what a worker holds, then what was taken away or has ended. If nothing is held, work is brought so far."""
        if not self.holding():
            self.bring_forward()
        started = [run for run in self.driver.runs if run.attempt]
        return newest(sorted(started, key=self.is_held), n) if started else None

    def holding(self) -> list[Run]:
        return list(filter(self.is_held, self.driver.runs))

    def is_held(self, run: Run) -> bool:
        return held(self.model, run.fence, run.hold) is not None

    def live(self) -> list[str]:
        return [task.id for task in self.model.tasks.values() if not task.state.terminal]

    @initialize(slots=st.lists(SLOTS, min_size=1, max_size=2), running=st.integers(0, 3), crashed=st.booleans())
    def begin(self, slots: list[Slots], running: int, crashed: bool) -> None:
        self.do(self.driver.begin(), *map(self.driver.join, slots))
        for _ in range(running):
            self.submit_new()
        self.bring_forward()
        if crashed:
            self.do(*(self.driver.release(run, 1, 1, "crash") for run in self.driver.runs))
            self.bring_forward()

    # Rules are few, so that each comes often enough to meet the others.

    def submit_new(self, wish: Wish = REPLIED) -> None:
        self.do(self.driver.submit(self.new_id(), wish))

    @rule(wish=WISHES)
    def submit(self, wish: Wish) -> None:
        self.submit_new(replace(wish, replies=not wish.attached, session="s"))

    @precondition(lambda self: self.ids)
    @rule(
        n=FEW, what=st.sampled_from(["cancel", "cancel", "cancel two", "cancel one to come", "submit again", "attend"])
    )
    def call(self, n: int, what: str) -> None:
        driver, id = self.driver, newest(self.ids, n)
        match what:
            case "cancel":
                self.do(driver.cancel([id]))
            case "cancel two":
                self.do(driver.cancel(list({id: 0, newest(self.ids, n + 1): 0})))
            case "cancel one to come":
                self.do(driver.cancel([self.new_id()]))
            case "submit again":
                self.do(driver.submit(id, Wish(replies=True)))
            case _:
                self.do(driver.attend(self.ids))

    @rule(
        n=FEW,
        what=st.sampled_from(["read", "admit", "admit one", "dispatch", "dispatch one", "reap", "due", "repair"]),
        quota=st.sampled_from(["", "taken", "600000"]),
        again=st.booleans(),
    )
    def schedule(self, n: int, what: str, quota: str, again: bool) -> None:
        driver = self.driver
        read = driver.read[-1 - n % len(driver.read) :] if driver.read else []
        match what:
            case "read":
                self.do(driver.read_arrivals())
            case "admit" | "admit one" if read:
                arrivals = read if what == "admit" else read[:1]
                self.do(driver.admit(arrivals, quota), *([driver.admit(arrivals)] if again else []))
            case "dispatch" | "dispatch one":
                self.do(driver.dispatch(100 if what == "dispatch" else 1))
            case "reap":
                self.do(driver.reap())
            case "due":
                self.do(driver.due())
            case "repair" if self.live():
                self.do(driver.repair(newest(self.live(), n)))

    @rule()
    def bring_forward(self) -> None:
        """The usual way, up to a running task, so that the rarer ways begin further on."""
        driver = self.driver
        if len(self.live()) < 4:
            self.submit_new(replace(REPLIED, tenant=newest(list(TENANTS), len(self.ids))))
        if all(min(astuple(room)) <= 0 for room in rooms(self.model).values()):
            self.do(driver.join(Slots(2, 2, 2)))
        self.do(driver.read_arrivals(), driver.admit(driver.read[-4:], "taken"), driver.dispatch(100))
        for owner in driver.owners:
            self.do(driver.take(owner))
        for run in [run for run in driver.runs if not run.attempt]:
            self.do(driver.start(run))

    @rule(
        n=FEW, what=st.sampled_from(["join", "beat", "beat", "take", "start", "retire", "retire at last"]), slots=SLOTS
    )
    def be_a_worker(self, n: int, what: str, slots: Slots) -> None:
        driver, owner = self.driver, newest(self.driver.owners, n)
        match what:
            case "join" if len(driver.owners) < 4:
                self.do(driver.join(slots))
            case "beat":
                self.do(driver.beat(owner, slots))
            case "take":
                self.do(driver.take(owner))
            case "start" if driver.runs:
                self.do(driver.start(newest(driver.runs, n)))
            case "retire" | "retire at last":
                self.do(driver.retire(owner, running=what != "retire"))

    @rule(n=FEW, behind=st.sampled_from(["all", "nothing", "another"]))
    def rebase(self, n: int, behind: str) -> None:
        if run := self.run(n):
            last = self.model.tasks[run.hand.id].last
            self.do(self.driver.rebase(run, {"all": last, "nothing": 0, "another": last + 1}[behind]))

    @rule(n=FEW, skew=SKEW, count=st.integers(1, 2), then=st.sampled_from(["", "again", "start again"]))
    def emit(self, n: int, skew: int, count: int, then: str) -> None:
        if run := self.run(n):
            first = max(1, run.made + 1 + skew)
            self.do(self.driver.emit(run, first, count))
            if then == "again":
                self.do(self.driver.emit(run, first, count))
            elif then == "start again":
                self.do(self.driver.start(run))

    @rule(
        n=FEW,
        skew=SKEW,
        count=st.integers(0, 2),
        state=st.sampled_from(STATES),
        again=st.booleans(),
        tokens=st.sampled_from([0, 20, 9000]),
    )
    def finish(self, n: int, skew: int, count: int, state: State, again: bool, tokens: int) -> None:
        if run := self.run(n):
            first = max(1, run.made + 1 + skew)
            for _ in range(1 + again):
                self.do(self.driver.finish(run, first, count, state, tokens))

    @rule(n=FEW, weight=st.sampled_from([0.5, 1, 7]), cap=st.integers(0, 2))
    def reload(self, n: int, weight: float, cap: int) -> None:
        """First of a tenant that has as many as it may."""
        tenant = newest(sorted(TENANTS, key=self.model.is_at_cap), n)
        self.do(self.driver.set_terms(tenant, weight, cap))

    @rule(n=FEW, skew=SKEW, count=st.integers(0, 2), charge=st.sampled_from(CHARGES), again=st.booleans())
    def release(self, n: int, skew: int, count: int, charge: str, again: bool) -> None:
        if run := self.run(n):
            first = max(1, run.made + 1 + skew)
            for _ in range(1 + again):
                self.do(self.driver.release(run, first, count, charge))

    @rule(n=FEW)
    def double(self, n: int) -> None:
        """Another process goes by the name of a worker, and takes a task of that one to be its own."""
        if run := self.run(n):
            twin = self.driver.double(run)
            self.do(self.driver.emit(twin, twin.made + 1, 1))

    @rule(n=FEW, what=st.sampled_from(["deadline", "time", "time", "silence", "loss"]))
    def mishap(self, n: int, what: str) -> None:
        model, live = self.model, self.live()
        put_off = [(name, id) for name in ("attached", "later", "leases") for id in sorted(getattr(model, name))]
        silent = [owner for owner in self.driver.owners if owner.worker in model.workers]
        match what:
            case "deadline" if live:
                self.do(self.driver.make_due("expiry", newest(live, n)))
            case "time" if put_off:
                self.do(self.driver.make_due(*newest(put_off, n)))
            case "silence" if silent:
                self.do(self.driver.silence(newest(silent, n)))
            case "loss" if live:
                self.do(self.driver.lose_place(newest(live, n)))

    # -- the end

    def teardown(self) -> None:
        if self.broken:
            return
        self.runner.run(settle(self.driver))
        content = audit.read(self.url, SHARD)
        faults = list(self.model.forgotten())
        faults += audit.faults_of_tasks(content, self.model.tasks.keys(), LIMITS) + audit.faults_of_drained(content)
        assert not faults, faults


async def settle(driver: Driver) -> None:
    """The old workers fall silent, all that waits for a time gets it; a scheduler and a new worker do what is left."""
    model = driver.model
    for owner in driver.owners:
        if owner.worker in model.workers:
            await driver.silence(owner)
    for id in list(model.leases):
        await driver.make_due("leases", id)
    await driver.read_arrivals()
    await driver.admit(driver.read, "taken")
    await driver.reap()
    for task in model.tasks.values():
        await driver.repair(task.id)
    await driver.reap()
    await driver.join(Slots(100, 100, 100))
    last = driver.owners[-1]
    while any(not task.state.terminal for task in model.tasks.values()):
        for id in list(model.later):
            await driver.make_due("later", id)
        await driver.due()
        await driver.read_arrivals()
        await driver.admit(driver.read, "taken")
        await driver.dispatch(100)
        before = len(driver.runs)
        await driver.take(last)
        for run in driver.runs[before:]:
            if await driver.start(run) == "run":
                await driver.finish(run, run.made + 1, 1, State.COMPLETED)
    await driver.read_arrivals()
    await driver.admit(driver.read)
    await driver.dispatch(100)
    await driver.due()
    await driver.bus.commands.call("DEL", SHARD.outbox)  # the notifier


def chosen_settings() -> settings:
    """As many examples as --hypothesis-profile says, or few."""
    chosen = settings.default
    assert chosen is not None
    return settings(
        chosen,
        max_examples=chosen.max_examples if settings.get_current_profile_name() == "deep" else EXAMPLES,
        deadline=None,
        print_blob=True,
        phases=set(Phase) - {Phase.explain},  # as long again, for a list of lines
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.timeout(3600)
@pytest.mark.redis_versions
def test_scripts_do_what_the_model_says(redis_url: str) -> None:
    with asyncio.Runner() as runner:
        bus = Bus(redis_url, name="model")
        runner.run(bus.__aenter__())
        kind = type("Lifecycle", (Lifecycle,), {"runner": runner, "bus": bus, "url": redis_url})
        try:
            run_state_machine_as_test(kind, settings=chosen_settings())
        finally:
            runner.run(bus.__aexit__(None, None, None))
