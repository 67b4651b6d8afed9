"""Alive is what made a pass, not what has a process."""

from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Receive, Scope, Send

from shared.clock import monotonic_s
from shared.periodic import Periodic
from shared.probes import STALE_S, Door, passing, probe_routes


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


@pytest.mark.parametrize(("ago_s", "well"), [(30 + STALE_S - 1, True), (30 + STALE_S + 1, False)])
def test_work_that_pauses_for_longer_is_not_stale_in_its_pause(ago_s: float, well: bool) -> None:
    async def nothing() -> None:
        return

    sweep = Periodic("the sweep", 30, nothing)
    sweep.last_pass_s = monotonic_s() - ago_s
    assert (passing(sweep)() is None) is well


def test_service_is_ready_when_all_its_loops_are_well() -> None:
    stuck = loop(ago_s=100)
    client = TestClient(Starlette(routes=probe_routes(passing(loop(ago_s=0)), passing(stuck))))
    assert client.get("/healthz").status_code == 200
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["faults"]) == (503, ["the stream made no pass for 100 s"])
    stuck.last_pass_s = monotonic_s()
    assert client.get("/readyz").status_code == 200


async def came(scope: Scope, receive: Receive, send: Send) -> None:
    await Response("the app")(scope, receive, send)


def test_a_shut_door_is_alive_not_ready_and_tells_what_is_waited_for() -> None:
    why = ["Redis is away"]
    door = Door(lambda: why[0] if why else None)
    client = TestClient(door)
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").json()["faults"] == ["Redis is away"]
    why.clear()
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["faults"]) == (503, ["it is starting"])


def test_a_shut_door_has_clients_come_again() -> None:
    client = TestClient(Door(lambda: None))
    answer = client.post("/v1/chat/completions", content=b"{}")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["error"]["code"] == "starting"
    with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/v1/ws"):
        pass
    assert (denied.value.status_code, denied.value.headers["retry-after"]) == (503, "2")


def test_an_opened_door_leads_everything_to_the_app() -> None:
    door = Door(lambda: None)
    door.open(came)
    client = TestClient(door)
    assert [client.get(path).text for path in ("/readyz", "/v1/models")] == ["the app", "the app"]
