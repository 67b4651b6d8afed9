"""Responses that are kept, with nobody behind the door: what is submitted, what is told of it, and to whom."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from services.inference.scripts import Owner, rebase, start
from services.ingress.app import build
from services.ingress.attendance import Attendance
from services.ingress.settings import Settings
from services.scheduler.scripts import dispatch
from shared.bus.client import Bus
from shared.bus.tail import Tails
from shared.cancel import Canceller
from shared.config import Config
from shared.lifecycle import State
from shared.messages import Finished, Response, Task, decode_task, encode
from shared.payer import digest_of
from shared.policy import Key, Live, Policy
from tests.support import tasks
from tests.support.tails import tailing

KEYS = {name: Key(tenant=name, sha256=digest_of(name)) for name in ("acme", "beta")}
CONFIG = Config(pools=tasks.CONFIG.pools, live=Live(Policy(keys=KEYS)))
PATH, ASKED = "/v1/responses", {"model": tasks.MODEL, "input": "one", "background": True}


@pytest.fixture
async def http(bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    async with tailing(bus) as tail:
        app = build(bus, CONFIG, Settings(), Tails([tail]), Attendance(bus, Canceller(bus, CONFIG)))
        headers = {"authorization": "Bearer acme"}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://ingress", headers=headers
        ) as client:
            yield client


BETA = {"authorization": "Bearer beta"}


async def make(http: httpx.AsyncClient, **more: Any) -> Any:
    answer = await http.post(PATH, json={**ASKED, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def task_of(response: Any) -> str:
    return str(response["id"]).removeprefix("resp_")


async def stored(bus: Bus, response: Any) -> tuple[Any, Any]:
    hash = await tasks.fields(bus, task_of(response))
    return decode_task(hash["spec"].encode()), msgspec.json.decode(hash["body"])


async def complete(bus: Bus, owner: Owner, response: Any, text: str, **more: Any) -> Any:
    """A worker runs the only task that waits."""
    assert "queued" in await tasks.admit_all(bus)
    assert (await dispatch(bus, tasks.SHARD, tasks.CONFIG)).handed_out == 1
    (hand,) = await tasks.hands(bus, owner)
    await start(bus, owner, [hand])
    part = {"type": "output_text", "text": text}
    whole = {"id": response["id"], "object": "response", "output": [{"type": "message", "content": [part]}], **more}
    finished = encode(Finished(attempt=1, last=0, state=State.COMPLETED, status=200))
    ending = msgspec.structs.replace(tasks.ending(hand, 1, 0), result=encode(whole), finished=finished)
    assert await tasks.finish_one(bus, owner, ending) == "ok"
    return whole


async def test_one_in_the_background_is_queued_and_the_engine_is_not_told_so(http: httpx.AsyncClient, bus: Bus) -> None:
    made = await make(http, instructions="be brief", metadata={"k": "v"})
    assert (made["status"], made["background"], made["output"], made["error"]) == ("queued", True, [], None)
    assert (made["instructions"], made["metadata"], made["model"]) == ("be brief", {"k": "v"}, tasks.MODEL)
    task, body = await stored(bus, made)
    assert (task.response, task.attached) == (Response(background=True), False)
    assert body == {"model": tasks.MODEL, "input": "one", "instructions": "be brief", "metadata": {"k": "v"}}
    assert (await http.get(f"{PATH}/{made['id']}")).json() == made


async def test_others_find_nothing(http: httpx.AsyncClient) -> None:
    made = await make(http)
    one = f"{PATH}/{made['id']}"
    asked = {**ASKED, "previous_response_id": made["id"]}
    refused = [
        await http.get(one, headers=BETA),
        await http.delete(one, headers=BETA),
        await http.post(f"{one}/cancel", headers=BETA),
        await http.post(PATH, json=asked, headers=BETA),
        await http.get(f"{PATH}/resp_nonsense"),
        await http.get(f"{PATH}/{task_of(made)}"),
    ]
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in refused] == [
        (404, "response_not_found")
    ] * 6


async def test_a_cancelled_one_stays_cancelled_and_cannot_be_followed(http: httpx.AsyncClient) -> None:
    made = await make(http)
    for _ in range(2):
        cancelled = await http.post(f"{PATH}/{made['id']}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    followed = await http.post(PATH, json={**ASKED, "previous_response_id": made["id"]})
    assert (followed.status_code, followed.json()["error"]["param"]) == (400, "previous_response_id")


async def test_one_that_waits_cannot_be_deleted_and_one_that_has_ended_can(http: httpx.AsyncClient) -> None:
    made = await make(http)
    assert (await http.delete(f"{PATH}/{made['id']}")).status_code == 400
    await http.post(f"{PATH}/{made['id']}/cancel")
    for status in (200, 404):
        assert (await http.delete(f"{PATH}/{made['id']}")).status_code == status


async def test_what_was_said_before_is_put_before_the_new_input(http: httpx.AsyncClient, bus: Bus) -> None:
    owner = await tasks.worker(bus)
    first = await make(http)
    whole = await complete(bus, owner, first, "two")
    assert (await http.get(f"{PATH}/{first['id']}")).json() == whole
    second = await make(http, input=[{"role": "user", "content": "three"}], previous_response_id=first["id"])
    task, body = await stored(bus, second)
    assert (second["previous_response_id"], task.response.previous) == (first["id"], first["id"])
    said = [{"role": "user", "content": "one"}, *whole["output"], {"role": "user", "content": "three"}]
    assert body == {"model": tasks.MODEL, "input": said}


@pytest.mark.parametrize("output", [None, "two"])
async def test_one_without_items_in_its_output_cannot_be_followed(
    http: httpx.AsyncClient, bus: Bus, output: str | None
) -> None:
    owner = await tasks.worker(bus)
    first = await make(http)
    await complete(bus, owner, first, "two", output=output)
    followed = await http.post(PATH, json={**ASKED, "previous_response_id": first["id"]})
    assert (followed.status_code, followed.json()["error"]["param"]) == (400, "previous_response_id")


async def test_a_body_that_is_no_utf8_is_the_engines_to_refuse(http: httpx.AsyncClient) -> None:
    body = b'{"model":"%b","background":true,"input":"\xff"}' % tasks.MODEL.encode()
    made = await http.post(PATH, content=body)
    assert (made.status_code, made.json()["status"]) == (200, "queued")
    one = f"{PATH}/{made.json()['id']}"
    assert (await http.get(one)).json() == made.json()


async def test_new_input_that_is_no_utf8_follows_nothing(http: httpx.AsyncClient, bus: Bus) -> None:
    owner = await tasks.worker(bus)
    first = await make(http)
    await complete(bus, owner, first, "two")
    body = b'{"model":"%b","input":"\xff","previous_response_id":"%b"}' % (tasks.MODEL.encode(), first["id"].encode())
    answer = await http.post(PATH, content=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")


async def test_the_id_of_another_server_is_the_engines_to_judge(http: httpx.AsyncClient, bus: Bus) -> None:
    made = await make(http, previous_response_id="resp_68af4030592c81938ec0a5fbab4a3e9f")
    task, body = await stored(bus, made)
    assert body["previous_response_id"] == "resp_68af4030592c81938ec0a5fbab4a3e9f"
    assert task.response.previous == ""


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"background": "yes"}, "background"),
        ({"store": 1}, "store"),
        ({"store": False}, "background"),
        ({"previous_response_id": 7}, "previous_response_id"),
    ],
)
async def test_odd_wishes_are_refused(http: httpx.AsyncClient, asked: dict[str, Any], param: str) -> None:
    answer = await http.post(PATH, json={**ASKED, **asked})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_stream_that_is_read_later_begins_with_the_attempt_that_stands(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    """The log holds what a lost worker had made too: an answer that starts over is no break for who has read none of it."""
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    spec = encode(Task(route=PATH, model=tasks.MODEL, tenant="acme", streamed=True))
    await bus.commands.call("HSET", tasks.SHARD.task(hand.id), "spec", spec)
    assert await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 2)) == "ok"
    assert await rebase(bus, owner, hand, attempt=1, behind=0) == "ok"
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 1)) == "ok"
    answer = await http.get(f"{PATH}/resp_{hand.id}?stream=true")
    assert (answer.status_code, answer.text) == (200, 'data: {"n":1}\n\n')


# -- input items


async def pages(http: httpx.AsyncClient, made: Any, **asked: Any) -> list[Any]:
    """As the `openai` client goes through them."""
    found: list[Any] = []
    more = True
    while more:
        page = (await http.get(f"{PATH}/{made['id']}/input_items", params=asked)).json()
        assert (page["object"], len(page["data"])) == ("list", min(len(page["data"]), asked.get("limit", 20)))
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        found += page["data"]
        more, asked["after"] = page["has_more"], page["last_id"]
    return found


async def test_input_items_are_whole_and_come_in_pages_in_both_orders(http: httpx.AsyncClient) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    twice = {"type": "reasoning", "id": "rs_1", "summary": []}
    spoken = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    given = {"type": "message", "id": "msg_1", "role": "user", "content": [{"type": "input_text", "text": "three"}]}
    made = await make(http, input=[*spoken, call, twice, twice, given])
    ids = [f"msg_{task_of(made)}_0", f"msg_{task_of(made)}_1", f"item_{task_of(made)}_2", "rs_1"]
    parts = [
        {"type": "input_text", "text": "one"},
        {"type": "output_text", "text": "two", "annotations": []},
    ]
    want = [
        {"type": "message", "id": ids[0], "role": "user", "content": [parts[0]]},
        {"type": "message", "id": ids[1], "role": "assistant", "content": [parts[1]]},
        {**call, "id": ids[2]},
        twice,
        {**twice, "id": f"item_{task_of(made)}_4"},
        given,
    ]
    assert await pages(http, made, order="asc") == want
    assert await pages(http, made) == want[::-1], "as the OpenAI API does, the last one first"
    for limit in (1, 2, 6):
        assert await pages(http, made, limit=limit, order="asc") == want
        assert await pages(http, made, limit=limit) == want[::-1]


async def test_input_items_of_one_that_follows_begin_with_what_was_said_before(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    owner = await tasks.worker(bus)
    first = await make(http)
    whole = await complete(bus, owner, first, "two")
    second = await make(http, input="three", previous_response_id=first["id"])
    items = await pages(http, second, order="asc")
    assert [item["content"][0]["text"] for item in items] == ["one", "two", "three"]
    assert items[1]["content"] == whole["output"][0]["content"]


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"limit": "101"}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "msg_x"}, "after"),
        ({"include[]": "file_search_call.results"}, "include[]"),
    ],
)
async def test_wrong_page_of_input_items_is_refused_by_its_name(
    http: httpx.AsyncClient, asked: dict[str, str], param: str
) -> None:
    made = await make(http)
    answer = await http.get(f"{PATH}/{made['id']}/input_items", params=asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_input_that_is_no_list_of_objects_has_no_items_and_others_see_none(http: httpx.AsyncClient) -> None:
    made = await make(http, input=["one", 2])
    one = f"{PATH}/{made['id']}/input_items"
    assert (await http.get(one)).json()["error"]["param"] == "input"
    assert (await http.get(one, headers=BETA)).status_code == 404
    assert (await pages(http, await make(http), limit=1))[0]["content"] == [{"type": "input_text", "text": "one"}]
