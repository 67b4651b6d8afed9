"""Dead letters over HTTP: every shard's in one list, one by one and many at a time, and requeued without losing or doubling any."""

from typing import Any

import httpx
import msgspec
import pytest
from msgspec.structs import replace

from services.inference.scripts import Owner
from shared import keys
from shared.bus.client import Bus
from shared.keys import ShardKeys, shard_keys
from shared.messages import Delivery, Task, decode_delivery, encode
from shared.policy import Endpoint, Policy, Webhooks
from shared.webhooks import destination, gone_mark
from tests.ingress.conftest import CONFIG
from tests.support import tasks

SHARDS = [tasks.SHARD, shard_keys("smol", 1), shard_keys("big", 0)]
MODELS = {"smol": tasks.MODEL, "big": "echo-2"}
HISTORY = b'{"attempt":1,"worker":"w1","started_at_ms":5,"ended_at_ms":9,"why":"lost","last":3}\n'


async def bury(
    bus: Bus, shard: ShardKeys = tasks.SHARD, *, at: str = "*", code: str = "task_quarantined", **asked: Any
) -> tuple[str, str]:
    """A task's dead letter, as the scripts write it: its address, and the id of the task."""
    task_id = f"{shard.pool}.{shard.shard}.0.0.{tasks.new_id().rpartition('.')[2]}"
    spec = Task(route="/v1/chat/completions", model=MODELS[shard.pool], tenant="default", **asked)
    body = encode({"model": spec.model, "messages": [{"role": "user", "content": "again"}]})
    fields = ("k", "task", "t", task_id, "code", code, "reason", "Each worker died.", "history", HISTORY)
    entry = await bus.commands.call("XADD", shard.dead, at, *fields, "spec", encode(spec), "body", body)
    return f"{shard.tag}:{entry.decode()}", task_id


async def letters(bus: Bus) -> list[str]:
    """The addresses of all that are left."""
    return [f"{shard.tag}:{entry.decode()}" for shard in SHARDS for entry, _ in await tasks.entries(bus, shard.dead)]


async def pages(http: httpx.AsyncClient, **asked: str) -> list[list[str]]:
    """The ids of the letters of each page of a list."""
    found: list[list[str]] = []
    after: dict[str, str] = {}
    while True:
        page = (await http.get("/v1/dead", params=asked | after)).json()
        found.append([letter["id"] for letter in page["data"]])
        if not page["has_more"]:
            assert page["next"] is None
            return found
        after = {"after": page["next"]}


# -- looking


async def test_a_letter_tells_what_was_given_up_and_why_and_by_itself_also_what_was_asked(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    letter, task = await bury(bus, session="ann", metadata=msgspec.Raw(b'{"order":7}'))
    page = (await http.get("/v1/dead")).json()
    assert (page["object"], page["total"], page["scanned"], page["has_more"]) == ("list", 1, 1, False)
    [listed] = page["data"]
    told = (listed["id"], listed["kind"], listed["task"], listed["code"], listed["reason"], listed["model"])
    assert told == (letter, "task", task, "task_quarantined", "Each worker died.", tasks.MODEL)
    assert listed["created_at_ms"] == int(letter.partition(":")[2].partition("-")[0])
    assert [attempt["why"] for attempt in listed["history"]] == ["lost"]
    assert "body" not in listed
    alone = (await http.get(listed["links"]["self"])).json()
    assert alone["body"]["messages"] == [{"role": "user", "content": "again"}]
    assert (alone["spec"]["session"], alone["spec"]["metadata"]) == ("ann", {"order": 7})


async def test_all_shards_are_one_list_newest_first_in_pages_of_any_size(http: httpx.AsyncClient, bus: Bus) -> None:
    made = []
    for number in range(12):  # three shards with the same ids: their order is settled by the shard
        for shard in sorted(SHARDS, key=lambda shard: (shard.pool, shard.shard)):
            made.append((await bury(bus, shard, at=f"{1000 + number // 5}-{number}"))[0])
    for limit in (1, 5, 12, 35, 36, 100):
        found = await pages(http, limit=str(limit))
        assert [letter for page in found for letter in page] == made[::-1]
        assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)


async def test_a_list_is_narrowed_by_pool_code_and_model(http: httpx.AsyncClient, bus: Bus) -> None:
    quarantined, _ = await bury(bus, at="1-0")
    failed, _ = await bury(bus, at="2-0", code="run_time_exceeded")
    big, _ = await bury(bus, SHARDS[2], at="3-0")
    assert await pages(http, pool="big") == [[big]]
    assert await pages(http, code="task_quarantined") == [[big, quarantined]]
    assert await pages(http, model=tasks.MODEL) == [[failed, quarantined]]
    assert await pages(http, model=tasks.MODEL, code="run_time_exceeded", pool="smol") == [[failed]]
    assert await pages(http, code="") == [[]]


async def test_a_rare_letter_is_found_page_by_page_without_looking_at_all_in_one_request(
    http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.ingress.letters.SCANNED", 7)
    rare, _ = await bury(bus, code="rare")
    for _ in range(20):
        await bury(bus)
    assert await pages(http, code="rare") == [[], [], [rare]]


async def test_a_reply_that_could_not_be_delivered_is_a_letter_too(http: httpx.AsyncClient, bus: Bus) -> None:
    """Those of an earlier version have no field `k`."""
    task = tasks.new_id()
    for kind in ((), ("k", "reply")):
        await bus.commands.call("XADD", tasks.SHARD.dead, "*", *kind, "t", task, "reason", "no stream")
    listed = (await http.get("/v1/dead")).json()["data"]
    assert [(letter["kind"], letter["task"], letter["reason"]) for letter in listed] == [
        ("reply", task, "no stream")
    ] * 2


NONE = [
    "nonsense",
    "smol.0:1-1",
    "smol.9:1-1",
    "other.0:1-1",
    "smol.0:99999999999999999999-0",
    "smol.0:1-1-1",
]


@pytest.mark.parametrize("letter", NONE)
@pytest.mark.parametrize(("method", "more"), [("GET", ""), ("DELETE", ""), ("POST", "/requeue")])
async def test_a_letter_that_is_not_there_is_not_found(
    http: httpx.AsyncClient, letter: str, method: str, more: str
) -> None:
    answer = await http.request(method, f"/v1/dead/{letter}{more}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "dead_letter_not_found")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"pool": "nope"}, "pool"),
        ({"pool": ""}, "pool"),
        ({"after": "yesterday"}, "after"),
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "²"}, "limit"),
        ({"limit": "1" * 5000}, "limit"),
        ({"kode": "x"}, "kode"),
    ],
)
@pytest.mark.parametrize("path", ["", "/requeue", "/drop"])
async def test_a_faulty_filter_is_refused_before_anything_is_done(
    http: httpx.AsyncClient, bus: Bus, path: str, asked: dict[str, str], param: str
) -> None:
    await bury(bus)
    answer = await http.request("POST" if path else "GET", f"/v1/dead{path}", params=asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert len(await letters(bus)) == 1


@pytest.mark.parametrize("path", ["requeue", "drop"])
async def test_filters_in_the_body_are_refused_where_they_would_be_overlooked(
    http: httpx.AsyncClient, bus: Bus, path: str
) -> None:
    await bury(bus)
    answer = await http.post(f"/v1/dead/{path}", json={"code": "rare"})
    assert (answer.status_code, len(await letters(bus))) == (400, 1)


# -- requeue


async def test_a_requeued_task_is_a_new_one_that_names_the_dead_one(http: httpx.AsyncClient, bus: Bus) -> None:
    letter, dead = await bury(bus, SHARDS[1], session="ann", reply_to="orders", expires_in_s=9.0)
    answer = await http.post(f"/v1/dead/{letter}/requeue")
    told = answer.json()
    assert (answer.status_code, told["status"], told["requeued_from"]) == (202, "pending", dead)
    assert answer.headers["location"] == f"/v1/tasks/{told['id']}"
    assert told["id"] != dead
    assert told["id"].startswith("smol.1.0.0.")
    kept = await bus.commands.call("HMGET", SHARDS[1].task(told["id"]), "spec", "body", "created_at_ms", "deadline_ms")
    spec = msgspec.json.decode(kept[0])
    assert (spec["session"], spec["reply_to"], spec["requeued_from"]) == ("ann", "orders", dead)
    assert b"again" in kept[1]
    assert int(kept[3]) - int(kept[2]) == 9000
    assert await letters(bus) == []


async def test_the_view_of_a_requeued_task_names_the_dead_one(http: httpx.AsyncClient, bus: Bus) -> None:
    letter, dead = await bury(bus)
    new = (await http.post(f"/v1/dead/{letter}/requeue")).json()["id"]
    assert (await http.get(f"/v1/tasks/{new}")).json()["requeued_from"] == dead


async def test_a_requeue_that_broke_off_before_the_letter_was_gone_makes_nothing_twice(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    """The two steps are not atomic: the caller, or ingress itself, may die between them."""
    letter, _ = await bury(bus)
    [(entry, fields)] = await tasks.entries(bus, tasks.SHARD.dead)
    first = (await http.post(f"/v1/dead/{letter}/requeue")).json()
    flat = [part for pair in fields.items() for part in pair]
    await bus.commands.call("DEL", tasks.SHARD.dead)
    await bus.commands.call("XADD", tasks.SHARD.dead, entry, *flat)
    again = await http.post(f"/v1/dead/{letter}/requeue")
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    assert len(await tasks.entries(bus, tasks.SHARD.arrivals)) == 1
    assert await letters(bus) == []


async def test_a_producers_key_stays_with_the_dead_task_and_does_not_keep_it_from_being_requeued(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    """The key is bound to the dead task: submitted by the key, the requeue would find that one and make nothing."""
    letter, dead = await bury(bus, task_id="order-17")
    await bus.commands.call("SET", keys.idempotency("default", "order-17"), f"0 {dead}", "EX", 60)
    answer = (await http.post(f"/v1/dead/{letter}/requeue")).json()
    assert answer["id"] != dead
    assert (await http.get(f"/v1/tasks/{answer['id']}")).json()["task_id"] == "order-17"


async def test_a_requeued_task_is_not_cancelled_for_the_absence_of_its_first_client(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    letter, _ = await bury(bus, attached=True)
    await http.post(f"/v1/dead/{letter}/requeue")
    assert not await bus.commands.call("EXISTS", tasks.SHARD.attached)


async def test_a_task_of_a_model_that_is_not_served_any_more_is_refused_and_stays(
    http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "smol", "retired")
    letter, _ = await bury(bus)
    answer = await http.post(f"/v1/dead/{letter}/requeue")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert await letters(bus) == [letter]


async def test_a_letter_without_a_task_that_can_be_read_is_shown_and_can_only_be_dropped(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    fields = ("k", "task", "t", tasks.new_id(), "spec", "{oops", "body", b"\xff", "history", "{oops")
    entry = (await bus.commands.call("XADD", tasks.SHARD.dead, "*", *fields)).decode()
    shown = (await http.get(f"/v1/dead/smol.0:{entry}")).json()
    assert (shown["body"], "spec" in shown) == ("\ufffd", False)
    assert (await http.post(f"/v1/dead/smol.0:{entry}/requeue")).status_code == 400
    assert (await http.delete(f"/v1/dead/smol.0:{entry}")).status_code == 200


async def test_a_task_of_an_adapter_is_requeued(
    http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = await bury(bus)
    monkeypatch.setitem(CONFIG.pools, "smol", replace(CONFIG.pools["smol"], model="other", adapters=[tasks.MODEL]))
    assert (await http.post(f"/v1/dead/{address}/requeue")).status_code == 202


async def test_a_requeued_reply_goes_to_the_outbox_once_more(http: httpx.AsyncClient, bus: Bus) -> None:
    task = (await ended_with_reply(bus, await tasks.worker(bus))).encode()
    await bus.commands.call("DEL", tasks.SHARD.outbox)
    entry = await bus.commands.call("XADD", tasks.SHARD.dead, "*", "k", "reply", "t", task, "reason", "no stream")
    answer = await http.post(f"/v1/dead/smol.0:{entry.decode()}/requeue")
    assert (answer.status_code, answer.json()["id"], answer.json()["status"]) == (202, task.decode(), "completed")
    assert [fields for _, fields in await tasks.entries(bus, tasks.SHARD.outbox)] == [{b"t": task}]
    assert await letters(bus) == []


async def ended_with_reply(bus: Bus, owner: Owner) -> str:
    hand = await tasks.running(bus, owner, reply_to="orders")
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 0)) == "ok"
    return hand.id


async def test_a_reply_whose_task_has_expired_is_refused_and_stays(http: httpx.AsyncClient, bus: Bus) -> None:
    entry = await bus.commands.call("XADD", tasks.SHARD.dead, "*", "k", "reply", "t", tasks.new_id(), "reason", "x")
    answer = await http.post(f"/v1/dead/smol.0:{entry.decode()}/requeue")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "task_not_found")
    assert len(await letters(bus)) == 1


# -- drop, and many


async def test_a_dropped_letter_is_gone_and_to_drop_it_again_says_so(http: httpx.AsyncClient, bus: Bus) -> None:
    letter, _ = await bury(bus)
    kept, _ = await bury(bus)
    assert (await http.delete(f"/v1/dead/{letter}")).json()["deleted"] is True
    assert (await http.delete(f"/v1/dead/{letter}")).status_code == 404
    assert await letters(bus) == [kept]


async def all_pages(http: httpx.AsyncClient, action: str, **asked: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        answer = await http.post(f"/v1/dead/{action}", params=asked | after)
        assert answer.status_code == 200, answer.text
        found.append(answer.json())
        if not found[-1]["has_more"]:
            return found
        after = {"after": found[-1]["next"]}


async def test_many_are_dropped_by_filter_page_by_page_and_the_others_stay(http: httpx.AsyncClient, bus: Bus) -> None:
    for shard in SHARDS:
        for _ in range(5):
            await bury(bus, shard, code="old")
    kept = [(await bury(bus, shard))[0] for shard in SHARDS]
    found = await all_pages(http, "drop", code="old", limit="4")
    assert [page["handled"] for page in found] == [4, 4, 4, 3]
    assert await letters(bus) == kept


async def test_many_are_requeued_and_those_that_cannot_be_are_named_and_stay(http: httpx.AsyncClient, bus: Bus) -> None:
    for shard in SHARDS:
        for _ in range(3):
            await bury(bus, shard)
    entry = await bus.commands.call("XADD", tasks.SHARD.dead, "*", "k", "reply", "t", tasks.new_id(), "reason", "x")
    found = await all_pages(http, "requeue", limit="4")
    refused = [letter for page in found for letter in page["refused"]]
    assert sum(page["handled"] for page in found) == 9
    assert [letter["id"] for letter in refused] == [f"smol.0:{entry.decode()}"]
    assert refused[0]["error"]["code"] == "task_not_found"
    assert await letters(bus) == [f"smol.0:{entry.decode()}"]
    assert [len(await tasks.entries(bus, shard.arrivals)) for shard in SHARDS] == [3, 3, 3]


async def test_a_full_backlog_ends_a_page_in_between_and_nothing_is_passed_over(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    """The letter that found no room is the first of the next page, however often it is asked for."""
    await bus.commands.call("HSET", tasks.SHARD.waiting, "l:normal", CONFIG.limits.backlog * 9 // 10 - 2)
    made = [(await bury(bus))[0] for _ in range(4)]
    first = (await http.post("/v1/dead/requeue")).json()
    assert (first["handled"], first["has_more"], first["next"]) == (2, True, made[2])
    full = await http.post("/v1/dead/requeue", params={"after": first["next"]})
    assert (full.status_code, full.json()["error"]["code"]) == (429, "backlog_full")
    await bus.commands.call("DEL", tasks.SHARD.waiting)
    last = (await http.post("/v1/dead/requeue", params={"after": first["next"]})).json()
    assert (last["handled"], last["has_more"]) == (2, False)
    assert await letters(bus) == []


# -- webhooks


async def bury_webhook(bus: Bus, *, to: str = "orders", delivery: bytes | None = None) -> tuple[str, Delivery]:
    """The letter of an event that did not arrive, as the notifier writes it."""
    task = tasks.new_id()
    event = Delivery(id="msg_1", event="task.completed", to=to, tenant="default", at_ms=5, task=task)
    fields = ("k", "webhook", "t", task, "code", "webhook_gone", "reason", "It answered 410.", "tenant", "default")
    held = encode(event) if delivery is None else delivery
    entry = await bus.commands.call("XADD", tasks.SHARD.dead, "*", *fields, "delivery", held)
    return f"{tasks.SHARD.tag}:{entry.decode()}", event


async def test_a_webhook_is_delivered_again_with_the_same_id_though_its_task_is_gone(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    letter, event = await bury_webhook(bus)
    [seen] = (await http.get("/v1/dead", params={"code": "webhook_gone"})).json()["data"]
    assert (seen["kind"], seen["task"]) == ("webhook", event.task)
    answer = await http.post(f"/v1/dead/{letter}/requeue")
    assert (answer.status_code, answer.json()["id"], answer.json()["status"]) == (202, event.task, "completed")
    assert "requeued_from" not in answer.json()
    [(_, fields)] = await tasks.entries(bus, keys.WEBHOOKS)
    assert decode_delivery(fields[b"delivery"]) == event
    assert await letters(bus) == []


async def test_a_webhook_of_a_batch_leads_to_the_batch(http: httpx.AsyncClient, bus: Bus) -> None:
    event = Delivery(id="msg_1", event="batch.expired", to="orders", tenant="default", at_ms=5)
    fields = ("k", "webhook", "t", "batch_1", "code", "webhook_gone", "reason", "It answered 410.", "tenant", "default")
    entry = await bus.commands.call("XADD", tasks.SHARD.dead, "*", *fields, "delivery", encode(event))
    letter = f"{tasks.SHARD.tag}:{entry.decode()}"
    [seen] = (await http.get("/v1/dead")).json()["data"]
    assert (seen["task"], seen["links"]) == ("batch_1", {"self": f"/v1/dead/{letter}", "batch": "/v1/batches/batch_1"})
    answer = await http.post(f"/v1/dead/{letter}/requeue")
    assert answer.status_code == 202
    assert answer.json() == {
        "id": "batch_1",
        "object": "batch",
        "status": "expired",
        "links": {"self": "/v1/batches/batch_1"},
    }
    [(_, told)] = await tasks.entries(bus, keys.WEBHOOKS)
    assert decode_delivery(told[b"delivery"]) == event


async def test_a_place_that_answered_410_is_asked_anew_when_its_letter_is_requeued(
    http: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = Endpoint(url="https://a.example/", secret_file="/s")
    monkeypatch.setattr(CONFIG.live, "policy", Policy(webhooks=Webhooks(endpoints={"orders": endpoint})))
    place = destination(CONFIG.policy, "default", "orders")
    assert place is not None
    await bus.commands.call("ZADD", keys.WEBHOOKS_GONE, 10**15, gone_mark(place))
    letter, _ = await bury_webhook(bus)
    assert (await http.post(f"/v1/dead/{letter}/requeue")).status_code == 202
    assert await bus.commands.call("EXISTS", keys.WEBHOOKS_GONE) == 0


async def test_a_letter_without_an_event_is_refused_and_stays(http: httpx.AsyncClient, bus: Bus) -> None:
    letter, _ = await bury_webhook(bus, delivery=b"{")
    answer = await http.post(f"/v1/dead/{letter}/requeue")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "id")
    assert await letters(bus) == [letter]
