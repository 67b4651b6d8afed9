"""With `durability = "replicated"` nothing counts as accepted that a replica does not have."""

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.deployment import Deployment, deployment
from tests.support.redis import find_server
from tests.support.server import Server, replica_of, server
from tests.support.websocket import PushClient

MODEL = "smollm2-135m-instruct"
CONFIG = 'durability = "replicated"\n[pools.smol]\nmodel = "smollm2-135m-instruct"\nengine = "echo"'


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Server]:
    with server(find_server(), tmp_path / "primary", "--appendonly", "yes") as running:
        yield running


@pytest.fixture
def replica(primary: Server, tmp_path: Path) -> Iterator[Server]:
    with replica_of(primary, find_server(), tmp_path / "replica") as running:
        yield running


@pytest.fixture
def running(primary: Server, replica: Server, tmp_path: Path) -> Iterator[Deployment]:
    with deployment(tmp_path, config=CONFIG, redis_url=primary.url) as running:
        yield running


async def submit(http: httpx.AsyncClient, task_id: str) -> httpx.Response:
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "a b c"}]}
    return await http.post("/v1/tasks", json={"body": body, "task_id": task_id})


async def test_task_is_accepted_once_the_replica_has_it_and_not_before(replica: Server, running: Deployment) -> None:
    async with httpx.AsyncClient(base_url=running.http, timeout=60) as http, PushClient(running.sockets()[0]) as socket:
        accepted = await submit(http, "first")
        assert accepted.status_code == 202
        id = accepted.json()["id"]
        assert replica.ask("HEXISTS", f"hr:{{smol.0}}:task:{id}", "state") in (1, True)
        await socket.follow(id)
        await socket.until_end(id)

        replica.signal(signal.SIGSTOP)
        unknown = await submit(http, "second")
        replica.signal(signal.SIGCONT)
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (503, "bus_unavailable")
        assert int(unknown.headers["retry-after"]) > 0

        again = await submit(http, "second")
        assert again.status_code == 202
        assert replica.ask("HEXISTS", f"hr:{{smol.0}}:task:{again.json()['id']}", "state") in (1, True)
