"""Cancelling and looking at tasks over HTTP."""

import httpx
import pytest

from shared.bus.client import Bus
from shared.submit import submit
from tests.support import tasks

UNKNOWN = f"smol.0.0.0.{'0' * 26}"


async def test_a_waiting_task_is_cancelled_at_once_and_again_without_harm(http: httpx.AsyncClient, bus: Bus) -> None:
    task = await tasks.admitted(bus)
    for _ in range(2):
        answer = await http.post(f"/v1/tasks/{task}/cancel")
        assert answer.status_code == 200
        assert answer.headers["x-headrace-task"] == task
        told = answer.json()
        assert (told["id"], told["object"], told["status"], told["known"]) == (task, "task", "cancelled", True)
        assert told["links"]["self"] == f"/v1/tasks/{task}"
    view = (await http.get(f"/v1/tasks/{task}")).json()
    assert (view["status"], view["error"]["code"]) == ("cancelled", "task_cancelled")


async def test_a_running_task_is_told_to_stop_and_the_view_says_so(http: httpx.AsyncClient, bus: Bus) -> None:
    hand = await tasks.running(bus, await tasks.worker(bus))
    assert (await http.post(f"/v1/tasks/{hand.id}/cancel")).json()["status"] == "processing"
    view = (await http.get(f"/v1/tasks/{hand.id}")).json()
    assert (view["status"], view["stop"]) == ("processing", "cancelled")


async def test_what_has_ended_stays_as_it_ended(http: httpx.AsyncClient, bus: Bus) -> None:
    hand = await tasks.ended(bus, await tasks.worker(bus))
    answer = await http.post(f"/v1/tasks/{hand.id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")


async def test_a_task_that_has_not_come_is_cancelled_when_it_comes(http: httpx.AsyncClient, bus: Bus) -> None:
    answer = await http.post(f"/v1/tasks/{UNKNOWN}/cancel")
    assert (answer.status_code, answer.json()["status"], answer.json()["known"]) == (202, "cancelled", False)
    assert (await http.get(f"/v1/tasks/{UNKNOWN}")).status_code == 404
    assert await submit(bus, tasks.SHARD, tasks.CONFIG, [tasks.item(UNKNOWN)]) == ["cancelled"]


@pytest.mark.parametrize("task_id", ["nonsense", f"other.0.0.0.{'0' * 26}", f"smol.7.0.0.{'0' * 26}"])
async def test_what_is_no_id_of_ours_is_not_found(http: httpx.AsyncClient, task_id: str) -> None:
    answer = await http.post(f"/v1/tasks/{task_id}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "task_not_found")


async def test_the_view_tells_the_deadline_and_what_was_tried(http: httpx.AsyncClient, bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    view = (await http.get(f"/v1/tasks/{hand.id}")).json()
    assert view["deadline_ms"] > view["created_at_ms"]
    assert "history" not in view
    line = b'{"attempt":1,"worker":"w1","started_at_ms":5,"ended_at_ms":9,"why":"lost","last":3}\n'
    lost = ("history", line * 2, "crashes", 2, "failures", 1)
    await bus.commands.call("HSET", tasks.SHARD.task(hand.id), *lost)
    view = (await http.get(f"/v1/tasks/{hand.id}")).json()
    assert (view["crashes"], view["failures"], len(view["history"])) == (2, 1, 2)
    assert (view["history"][0]["why"], view["history"][0]["last"]) == ("lost", 3)


async def test_a_deadline_over_the_limit_is_refused_with_the_limit(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/tasks", json={"input_text": "x", "model": tasks.MODEL, "expires_in": 86_401})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "expires_in")
    assert "86400" in answer.json()["error"]["message"]


async def test_a_task_expires_when_it_was_asked_to(http: httpx.AsyncClient) -> None:
    asked = {"input_text": "x", "model": tasks.MODEL, "expires_in": 2.5}
    task = (await http.post("/v1/tasks", json=asked)).json()["id"]
    view = (await http.get(f"/v1/tasks/{task}")).json()
    assert view["deadline_ms"] - view["created_at_ms"] == 2500
