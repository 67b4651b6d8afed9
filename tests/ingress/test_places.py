"""GET /v1/tasks tells where waiting tasks stand; test_place.py says how that is known."""

import httpx

from shared.bus.client import Bus
from shared.lifecycle import Lane
from tests.support import tasks

PLACE = ("position", "eta_ms", "waits_for", "due_ms")


def place_of(view: dict[str, object]) -> dict[str, object]:
    return {name: view[name] for name in PLACE if name in view}


async def test_a_waiting_task_tells_its_place_and_a_running_one_none(http: httpx.AsyncClient, bus: Bus) -> None:
    first, second = [await tasks.admitted(bus, lane=lane) for lane in (Lane.INTERACTIVE, Lane.NORMAL)]
    view = (await http.get(f"/v1/tasks/{second}")).json()
    assert place_of(view) == {"position": 2, "waits_for": "no_worker"}
    listed = {view["id"]: place_of(view)["position"] for view in (await http.get("/v1/tasks")).json()["data"]}
    assert listed == {first: 1, second: 2}
    await bus.commands.call("HSET", tasks.SHARD.task(second), "state", "processing")
    assert place_of((await http.get(f"/v1/tasks/{second}")).json()) == {}


async def test_with_a_free_slot_a_task_starts_at_once(http: httpx.AsyncClient, bus: Bus) -> None:
    await tasks.worker(bus)
    task = await tasks.admitted(bus)
    view = (await http.get(f"/v1/tasks/{task}")).json()
    assert place_of(view) == {"position": 1, "eta_ms": 0, "waits_for": "slots"}


async def test_a_task_of_later_tells_when(http: httpx.AsyncClient, bus: Bus) -> None:
    task = await tasks.admitted(bus)
    await bus.commands.call("ZREM", tasks.SHARD.backlog(Lane.NORMAL, "default"), task)
    await bus.commands.call("ZADD", tasks.SHARD.later, 4_000_000_000_000, task)
    view = (await http.get(f"/v1/tasks/{task}")).json()
    assert place_of(view) == {"waits_for": "later", "due_ms": 4_000_000_000_000}
