"""A short chaos run: `make chaos` runs longer ones (docs/chaos.md)."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.chaos.faults import WEIGHTS, schedule
from tests.chaos.run import Options, chaos
from tests.chaos.tickets import Shares, echoes

SHORT = Shares(poison={"exit": 0.002, "error": 0.01, "busy-once": 0.01})


@contextlib.asynccontextmanager
async def unseen(line: Callable[[], str]) -> AsyncIterator[None]:
    yield


@pytest.mark.timeout(480)
async def test_every_promise_holds_while_everything_is_broken(tmp_path: Path) -> None:
    options = Options(
        seed=20,
        folder=tmp_path,
        minutes=0.25,
        every_s=1.0,
        kinds=WEIGHTS,
        replicas="ingress=2,scheduler=2,inference=2,notifier=2",
        lease_s=3,
        kept_s=20,
        shares=SHORT,
    )
    made = await chaos(options, unseen)
    assert not made.breaches, f"{made.text()}\n{tmp_path}/tales.txt"
    assert sum(made.faults.values()) >= 10
    assert sum(made.tasks.values()) >= 150
    assert {"completed", "cancelled"} <= made.ends.keys()


def test_the_same_seed_gives_the_same_faults_and_the_same_tasks() -> None:
    assert [*schedule(7, 600, 3, WEIGHTS)] == [*schedule(7, 600, 3, WEIGHTS)]
    tickets = [[next(made) for _ in range(500)] for made in (echoes(7, Shares()), echoes(7, Shares()))]
    assert tickets[0] == tickets[1]
    assert {fault.kind for fault in schedule(7, 3600, 3, WEIGHTS)} == set(WEIGHTS)
