"""Alive is what made a pass, not what has a process."""

from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from shared.clock import monotonic_s
from shared.probes import STALE_S, passing, probe_routes


def loop(ago_s: float | None = None, fault: str | None = None) -> Any:
    return SimpleNamespace(name="the stream", fault=fault, last_pass_s=None if ago_s is None else monotonic_s() - ago_s)


@pytest.mark.parametrize(
    ("ago_s", "fault", "said"),
    [
        (None, None, "the stream has not made a pass yet"),
        (None, "gone", "gone"),
        (0.0, None, None),
        (0.0, "gone", "gone"),
        (STALE_S + 1, None, f"the stream made no pass for {STALE_S + 1:.0f} s"),
        (STALE_S + 1, "gone", "gone"),
    ],
)
def test_loop_is_well_when_it_made_a_pass_lately_without_a_fault(
    ago_s: float | None, fault: str | None, said: str | None
) -> None:
    assert passing(loop(ago_s, fault))() == said


def test_service_is_ready_when_all_its_loops_are_well() -> None:
    stuck = loop(ago_s=100)
    client = TestClient(Starlette(routes=probe_routes(passing(loop(ago_s=0)), passing(stuck))))
    assert client.get("/healthz").status_code == 200
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["faults"]) == (503, ["the stream made no pass for 100 s"])
    stuck.last_pass_s = monotonic_s()
    assert client.get("/readyz").status_code == 200
