"""Large bodies and answers at the HTTP door: taken into the object store, given out of it, and refused clearly without it."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
from msgspec.structs import replace

from services.ingress.app import build
from services.ingress.attendance import Attendance
from services.ingress.settings import Settings
from shared import keys
from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.streams import append
from shared.bus.tail import Tails
from shared.cancel import Canceller
from shared.config import Config, Limits
from shared.errors import ErrorBody
from shared.large import Large, object_key
from shared.lifecycle import State
from shared.messages import Finished, Stored, decode_task, encode
from shared.objects import PIECE_BYTES, Objects
from shared.routes import RESPONSES
from tests.shared.test_files import stored
from tests.support import tasks
from tests.support.tails import tailing

CONFIG = Config(pools=tasks.CONFIG.pools, limits=Limits(inline_bytes=1024))
CHAT = {"model": tasks.MODEL, "messages": [{"role": "user", "content": "y" * 2000}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def objects(folder: Path) -> Objects:
    return Objects(folder.as_uri())


@pytest.fixture
async def http(bus: Bus, folder: Path, objects: Objects) -> AsyncIterator[httpx.AsyncClient]:
    async with tailing(bus) as tail:
        attendance = Attendance(bus, Canceller(bus, CONFIG))
        app = build(bus, CONFIG, Settings(objects_url=folder.as_uri()), Tails([tail]), attendance)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://ingress") as client:
            yield client


def take_away(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


def bring_back(folder: Path) -> None:
    folder.with_name("away").rename(folder)


async def ended(bus: Bus, objects: Objects, result: bytes, *, content_type: str = "") -> str:
    """A completed task whose result lies in the store."""
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    name = await Large(bus, objects, 0).put(hand.id, result)
    event = Finished(attempt=1, last=0, state=State.COMPLETED, status=200, content_type=content_type, stored=name)
    ending = replace(tasks.ending(hand, 1, 0), result=b"", finished=encode(event))
    assert await tasks.finish_one(bus, owner, ending) == "ok"
    return hand.id


async def task_keys(bus: Bus) -> list[bytes]:
    found: list[bytes] = await bus.commands.call("KEYS", tasks.SHARD.task("*"))
    return found


async def buried(bus: Bus, objects: Objects, body: bytes) -> tuple[str, Stored]:
    """A dead letter whose body lies in the store; its address, and the object."""
    task_id = tasks.new_id()
    name = await Large(bus, objects, 0).put(task_id, body)
    spec = encode(replace(decode_task(tasks.item().spec), stored=name))
    letter: dict[Arg, Arg] = {"k": "task", "t": task_id, "code": "x", "reason": "y", "spec": spec, "body": ""}
    entry = await append(bus, tasks.SHARD.dead, letter)
    return f"smol.0:{entry.decode()}", name


async def test_a_large_result_is_told_by_its_place_and_comes_from_there_piece_by_piece(
    http: httpx.AsyncClient, bus: Bus, objects: Objects
) -> None:
    for content_type, result in (("image/png", bytes(range(256)) * 9000), ("", b'{"said":"%b"}' % (b"y" * 3000))):
        assert (len(result) > PIECE_BYTES) == bool(content_type)
        id = await ended(bus, objects, result, content_type=content_type)
        view = (await http.get(f"/v1/tasks/{id}")).json()
        url, kind = f"/v1/tasks/{id}/result", content_type or "application/json"
        assert view["result"] == {"content_type": kind, "bytes": len(result), "url": url}
        answer = await http.get(url)
        assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, kind, result)
        assert answer.headers["content-length"] == str(len(result))
        assert answer.headers["x-headrace-task"] == id


async def test_a_result_that_is_lost_or_out_of_reach_is_told_as_such(
    http: httpx.AsyncClient, bus: Bus, objects: Objects, folder: Path
) -> None:
    id = await ended(bus, objects, b"x" * 2000, content_type="image/png")
    take_away(folder)
    away = await http.get(f"/v1/tasks/{id}/result")
    assert (away.status_code, away.json()["error"]["code"]) == (503, "store_unavailable")
    bring_back(folder)
    await objects.delete(*await stored(objects))
    lost = await http.get(f"/v1/tasks/{id}/result")
    assert (lost.status_code, lost.json()["error"]["code"]) == (500, "object_missing")


async def test_without_the_store_a_large_body_is_refused_and_a_small_one_taken(
    http: httpx.AsyncClient, bus: Bus, folder: Path
) -> None:
    take_away(folder)
    refused = await http.post("/v1/tasks", json={"body": CHAT})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
    assert refused.headers["retry-after"]
    taken = await http.post("/v1/tasks", json={"body": CHAT | {"messages": []}})
    assert taken.status_code == 202
    assert await task_keys(bus) == [tasks.SHARD.task(taken.json()["id"]).encode()]
    assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 503
    assert (await http.post("/v1/tasks", json={"body": CHAT | {"messages": []}})).status_code == 202
    kinds = [await bus.commands.call("HGET", key, "tombstone") for key in await task_keys(bus)]
    assert kinds == [None, None]  # nothing was noted of what was refused


async def test_a_dead_letter_shows_its_large_body_and_is_requeued_with_it(
    http: httpx.AsyncClient, bus: Bus, objects: Objects
) -> None:
    body = msgspec.json.encode(CHAT)
    address, name = await buried(bus, objects, body)
    letter = (await http.get(f"/v1/dead/{address}")).json()
    assert (letter["body"], letter["spec"]["stored"]["bytes"]) == (CHAT, len(body))
    again = (await http.post(f"/v1/dead/{address}/requeue")).json()
    spec = decode_task((await tasks.fields(bus, again["id"]))["spec"].encode())
    assert spec.stored is not None
    assert spec.stored.name != name.name
    assert await Large(bus, objects, 0).get(again["id"], spec.stored) == body


async def test_a_dead_letter_whose_body_is_gone_says_so_and_stays(
    http: httpx.AsyncClient, bus: Bus, objects: Objects, folder: Path
) -> None:
    address, _ = await buried(bus, objects, b"{}")
    take_away(folder)
    assert (await http.post(f"/v1/dead/{address}/requeue")).status_code == 503
    assert (await http.post("/v1/dead/requeue")).status_code == 503
    bring_back(folder)
    await objects.delete(*await stored(objects))
    gone = await http.post(f"/v1/dead/{address}/requeue")
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "body_gone")
    assert "body" not in (await http.get(f"/v1/dead/{address}")).json()
    many = (await http.post("/v1/dead/requeue")).json()
    assert (many["handled"], many["refused"][0]["error"]["code"]) == (0, "body_gone")


async def test_a_response_whose_body_is_lost_or_out_of_reach_is_made_and_told_all_the_same(
    http: httpx.AsyncClient, bus: Bus, objects: Objects, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"model": tasks.MODEL, "input": "x" * 2000, "background": True, "temperature": 0.5}
    put = Objects.put

    async def once(self: Objects, key: str, data: bytes) -> None:
        await put(self, key, data)
        take_away(folder)

    monkeypatch.setattr(Objects, "put", once)
    made = (await http.post(RESPONSES, json=asked)).json()
    assert (made["status"], made["temperature"]) == ("queued", 0.5)
    assert (await http.get(f"{RESPONSES}/{made['id']}")).status_code == 503
    bring_back(folder)
    await objects.delete(*await stored(objects))
    error = ErrorBody(message="The body is gone.", type="server_error", code="object_missing")
    event = encode(Finished(attempt=1, last=0, state=State.FAILED, status=500, error=error))
    task = tasks.SHARD.task(made["id"].removeprefix("resp_"))
    await bus.commands.call("HSET", task, "state", "failed", "status", 500, "finished", event, "result", "{}")
    told = (await http.get(f"{RESPONSES}/{made['id']}")).json()
    assert (told["status"], told["error"]["code"]) == ("failed", "object_missing")


async def test_a_large_response_is_read_followed_and_deleted(
    http: httpx.AsyncClient, bus: Bus, objects: Objects
) -> None:
    asked = {"model": tasks.MODEL, "input": "x" * 2000, "background": True}
    made = (await http.post(RESPONSES, json=asked)).json()
    task_id = made["id"].removeprefix("resp_")
    assert (made["status"], made["model"]) == ("queued", tasks.MODEL)
    output = [{"role": "assistant", "content": "z" * 2000}]
    name = await Large(bus, objects, 0).put(task_id, msgspec.json.encode({"id": made["id"], "output": output}))
    event = encode(Finished(attempt=1, last=0, state=State.COMPLETED, status=200, stored=name))
    ended = ("state", "completed", "status", 200, "finished", event, "result", "")
    await bus.commands.call("HSET", tasks.SHARD.task(task_id), *ended)
    assert (await http.get(f"{RESPONSES}/{made['id']}")).json()["output"] == output
    follows = {"model": tasks.MODEL, "input": "on", "background": True, "previous_response_id": made["id"]}
    next_id = (await http.post(RESPONSES, json=follows)).json()["id"].removeprefix("resp_")
    spec = decode_task((await tasks.fields(bus, next_id))["spec"].encode())
    assert spec.stored is not None
    said = msgspec.json.decode(await Large(bus, objects, 0).get(next_id, spec.stored))["input"]
    assert said == [{"role": "user", "content": "x" * 2000}, *output, {"role": "user", "content": "on"}]
    assert (await http.delete(f"{RESPONSES}/{made['id']}")).json()["deleted"]
    assert await stored(objects) == [object_key(next_id, spec.stored)]
    assert await bus.commands.call("ZCARD", keys.OBJECTS) == 1
