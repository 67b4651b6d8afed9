"""Small simulations: the promises hold in them, whatever the number of schedulers, and a seed repeats a run exactly."""

import random
from pathlib import Path

import msgspec
import pytest

from shared.bus.script import Script
from shared.lifecycle import State
from tests.simulate import measure, report
from tests.simulate.clock import simulated_time
from tests.simulate.recording import Recording
from tests.simulate.run import simulate
from tests.simulate.scenarios import SCENARIOS, Scenario, given
from tests.simulate.world import Setup

SHORT_MINUTES = {
    "weights": 0.5,
    "sizes": 0.9,
    "late": 0.9,
    "idle": 0.9,
    "overtaking": 0.5,
    "alternating": 0.6,
    "tenants": 0.6,
    "dying": 0.6,
    "overload": 0.8,
}
CASES = [("weights", 1), ("sizes", 1), *((name, 3) for name in SHORT_MINUTES)]
"""More schedulers are the harder case."""


def run(scenario: Scenario, minutes: float, schedulers: int, seed: int = 1) -> tuple[Setup, Recording]:
    setup = scenario.make(random.Random(f"trace {seed}"), minutes * 60)
    setup = msgspec.structs.replace(setup, seed=seed, schedulers=schedulers)
    return setup, simulate(setup)


def events(recording: Recording) -> tuple[object, ...]:
    """All that happened, without what depends on the machine."""
    return recording.told, recording.stints, recording.slots, recording.counts, recording.ended_s


@pytest.mark.parametrize(("name", "schedulers"), CASES)
def test_the_promises_hold(name: str, schedulers: int) -> None:
    scenario = SCENARIOS[name]
    _, recording = run(scenario, SHORT_MINUTES[name], schedulers)
    broken = [check for check in scenario.check(recording) if not check.ok]
    assert not broken, report.text(recording, scenario.tenants, broken)


def test_every_scenario_is_tested() -> None:
    assert SHORT_MINUTES.keys() == SCENARIOS.keys()


def test_a_seed_repeats_a_run_exactly() -> None:
    first, again = (run(SCENARIOS["dying"], 0.3, 3, seed=5)[1] for _ in range(2))
    assert events(first) == events(again)
    assert events(first) != events(run(SCENARIOS["dying"], 0.3, 3, seed=6)[1])


def test_no_task_starts_before_it_came_and_each_runs_as_long_as_its_tokens_take() -> None:
    setup, recording = run(SCENARIOS["sizes"], 0.3, 1)
    for task in recording.told:
        assert task.state is State.COMPLETED
        assert (task.waited_s or 0) > 0
    for stint in recording.stints:
        row = setup.rows[stint.task]
        alone_s = setup.speed.steps(row.tokens_in, row.tokens_out) * setup.speed.seconds(1)
        assert stint.ended_s - stint.began_s >= alone_s - 0.002
    assert max(measure.busy(recording, 1.0)) <= setup.workers * setup.slots


def test_a_trace_that_somebody_brings_is_replayed(tmp_path: Path) -> None:
    rows = SCENARIOS["weights"].make(random.Random(3), 10).rows
    scenario = given("mine", rows, {"gold": 1.0}, 2, 8)
    _, recording = run(scenario, 0, 1)
    assert measure.states(recording) == {State.COMPLETED: len(rows)}
    assert recording.slots[-1][1] == 16
    assert [check.ok for check in scenario.check(recording)] == [True]


def test_scripts_know_the_real_time_again_afterwards() -> None:
    before = {sha: script.source for sha, script in Script.registry.items()}
    with simulated_time():
        assert not before.keys() & {sha for sha, script in Script.registry.items() if "now_ms" in script.source}
    assert {sha: script.source for sha, script in Script.registry.items()} == before
