"""submit.lua: a task is made once, with its arrival, its indexes and its news."""

import asyncio
import json
from typing import Any

import pytest

from services.inference.scripts import start
from services.scheduler.scripts import dispatch
from shared.bus.client import Bus
from shared.cancel import cancel
from shared.clock import now_ms
from shared.errors import CommandRefused
from shared.lifecycle import Lane
from shared.messages import Finished, Pending, decode_event
from shared.submit import ATTACHED_MS, INDEX_LENGTH, submit
from tests.support import tasks
from tests.support.redis import assert_refused_whole, snapshot, spoil
from tests.support.tasks import CONFIG, SHARD


async def test_new_task_is_pending_and_in_the_arrivals(bus: Bus) -> None:
    made = tasks.item(lane=Lane.BATCH, session="s1", reply_to="orders", expires_in_s=60)
    assert await submit(bus, SHARD, CONFIG, [made]) == ["new"]
    hash = await tasks.fields(bus, made.id)
    assert int(hash.pop("deadline_ms")) - int(hash.pop("created_at_ms")) == 60_000
    assert hash == {
        "state": "pending", "lane": "batch", "session": "s1", "reply_to": "orders", "epoch": "0",
        "tenant": "default", "tokens_in": "10", "tokens_out": "0", "eta_ms": "-1",
        "spec": made.spec.decode(), "body": made.body.decode(),
    }  # fmt: skip
    assert [fields for _, fields in await tasks.entries(bus, SHARD.arrivals)] == [{b"t": made.id.encode()}]


async def test_every_task_has_a_deadline_by_which_it_is_found(bus: Bus) -> None:
    soon, later = tasks.item(expires_in_s=0.5), tasks.item(expires_in_s=86_400)
    assert await submit(bus, SHARD, CONFIG, [later, soon]) == ["new", "new"]
    deadlines = [(await tasks.fields(bus, made.id))["deadline_ms"] for made in (soon, later)]
    found = await bus.commands.call("ZRANGE", SHARD.expiry, 0, -1, "WITHSCORES")
    assert [value.decode() for value in found] == [soon.id, deadlines[0], later.id, deadlines[1]]


async def test_only_an_attached_task_has_a_waiters_lease(bus: Bus) -> None:
    attached, free = tasks.item(attached=True), tasks.item()
    assert await submit(bus, SHARD, CONFIG, [attached, free]) == ["new", "new"]
    id, until_ms = await bus.commands.call("ZRANGE", SHARD.attached, 0, -1, "WITHSCORES")
    created_at_ms = int((await tasks.fields(bus, attached.id))["created_at_ms"])
    assert (id, int(until_ms) - created_at_ms) == (attached.id.encode(), ATTACHED_MS)


async def test_task_that_was_cancelled_before_it_came_ends_at_once(bus: Bus) -> None:
    made = tasks.item(session="s1", reply_to="orders", attached=True)
    assert await cancel(bus, SHARD, tasks.LIMITS, [made.id]) == ["unknown"]
    assert await submit(bus, SHARD, CONFIG, [made]) == ["cancelled"]
    hash = await tasks.fields(bus, made.id)
    assert (hash["state"], hash["status"], hash["spec"]) == ("cancelled", "499", made.spec.decode())
    assert "tombstone" not in hash
    assert json.loads(hash["result"])["error"]["code"] == "task_cancelled"
    assert [entry for _, entry in await tasks.entries(bus, SHARD.outbox)] == [{b"t": made.id.encode()}]
    news = [decode_event(fields[b"e"]) for _, fields in await tasks.entries(bus, SHARD.bus(0))]
    assert [type(event) for event in news] == [Pending, Finished]
    ((_, event),) = await tasks.entries(bus, SHARD.log(made.id))
    assert decode_event(event[b"e"]) == news[1]
    for key in (SHARD.task(made.id), SHARD.log(made.id)):
        assert await tasks.ttl_ms(bus, key) > 0
    assert await bus.commands.call("ZRANGE", SHARD.tenant("default"), 0, -1) == [made.id.encode()]
    assert await bus.commands.call("EXISTS", SHARD.arrivals, SHARD.expiry, SHARD.attached) == 0


@pytest.mark.parametrize("wants", [{"reply_to": "orders"}, {"metered": "1"}, {"tells": "1"}], ids=str)
async def test_whoever_wants_to_know_of_its_end_finds_it_in_the_outbox(bus: Bus, wants: dict[str, Any]) -> None:
    made, other = tasks.item(**wants), tasks.item()
    assert await submit(bus, SHARD, CONFIG, [made, other]) == ["new", "new"]
    assert {field: (await tasks.fields(bus, made.id))[field] for field in wants} == wants
    assert await cancel(bus, SHARD, tasks.LIMITS, [made.id, other.id]) == ["cancelled", "cancelled"]
    assert [entry for _, entry in await tasks.entries(bus, SHARD.outbox)] == [{b"t": made.id.encode()}]


@pytest.mark.keeps_keys
@pytest.mark.parametrize("wants", [{"reply_to": "orders"}, {"metered": "1"}, {"tells": "1"}], ids=str)
async def test_an_outbox_of_another_type_stops_only_those(bus: Bus, wants: dict[str, Any]) -> None:
    made = tasks.item(**wants)
    await assert_refused_whole(bus, SHARD.outbox, lambda: submit(bus, SHARD, CONFIG, [made]))
    assert await submit(bus, SHARD, CONFIG, [tasks.item()]) == ["new"]


async def test_repeat_of_a_task_that_was_cancelled_before_it_came_writes_nothing(bus: Bus) -> None:
    made = tasks.item(reply_to="orders")
    await cancel(bus, SHARD, tasks.LIMITS, [made.id])
    await submit(bus, SHARD, CONFIG, [made])
    before = await snapshot(bus)
    assert await submit(bus, SHARD, CONFIG, [made]) == ["cancelled"]
    assert await snapshot(bus) == before


async def test_cancel_that_came_first_is_obeyed_even_when_the_backlog_is_full(bus: Bus) -> None:
    made = tasks.item()
    await tasks.submitted(bus)
    await cancel(bus, SHARD, tasks.LIMITS, [made.id])
    assert await submit(bus, SHARD, tasks.config(backlog=1), [tasks.item(), made]) == ["full", "cancelled"]


async def test_result_that_somebody_waits_for_is_kept_for_longer_than_others_but_never_for_shorter(bus: Bus) -> None:
    left_ms = []
    for waited_ms in (3_600_000, 1):
        made = tasks.item(kept_until_ms=str(now_ms() + waited_ms))
        await submit(bus, SHARD, CONFIG, [made])
        await cancel(bus, SHARD, tasks.LIMITS, [made.id])
        left_ms.append(await tasks.ttl_ms(bus, SHARD.task(made.id)))
    kept_ms = tasks.LIMITS.results_kept_s * 1000
    assert kept_ms < left_ms[0] <= 3_600_000
    assert kept_ms / 2 < left_ms[1] <= kept_ms


async def test_repeat_answers_the_state_and_writes_nothing(bus: Bus) -> None:
    made = tasks.item(session="s1")
    await submit(bus, SHARD, CONFIG, [made])
    before = await snapshot(bus)
    assert await submit(bus, SHARD, CONFIG, [made]) == ["pending"]
    assert await snapshot(bus) == before


async def test_repeat_after_the_end_answers_the_terminal_state(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.ended(bus, owner)
    assert await submit(bus, SHARD, CONFIG, [tasks.item(hand.id)]) == ["completed"]
    assert (await tasks.fields(bus, hand.id))["state"] == "completed"


async def test_same_id_twice_in_one_call_makes_one_task(bus: Bus) -> None:
    made = tasks.item()
    assert await submit(bus, SHARD, CONFIG, [made, made]) == ["new", "pending"]
    assert len(await tasks.entries(bus, SHARD.arrivals)) == 1


async def test_rivals_with_one_id_make_one_task_and_the_first_body_stays(bus: Bus) -> None:
    id = tasks.new_id()
    first, second = tasks.item(id, body=b"1"), tasks.item(id, body=b"2")
    won, lost = await asyncio.gather(submit(bus, SHARD, CONFIG, [first]), submit(bus, SHARD, CONFIG, [second]))
    assert (won, lost) == (["new"], ["pending"])
    assert (await tasks.fields(bus, id))["body"] == "1"


async def test_backlog_limit_counts_arrivals_and_all_lanes(bus: Bus) -> None:
    for lane in Lane:
        await tasks.admitted(bus, lane=lane)
    await tasks.submitted(bus)
    limited = tasks.config(backlog=6)
    items = [tasks.item() for _ in range(4)]
    assert await submit(bus, SHARD, limited, items) == ["new", "new", "full", "full"]
    assert await tasks.fields(bus, items[2].id) == {}


async def test_only_the_lane_batch_counts_towards_a_tenants_batch_tokens(bus: Bus) -> None:
    urgent, batch = tasks.item(tokens_out=1000), tasks.item(lane=Lane.BATCH, tokens_out=10, batch_limit=100)
    assert await submit(bus, SHARD, CONFIG, [urgent, batch]) == ["new", "new"]


async def test_repeat_of_an_accepted_task_is_not_refused_when_full(bus: Bus) -> None:
    limited = tasks.config(backlog=1)
    made = tasks.item()
    assert await submit(bus, SHARD, limited, [made]) == ["new"]
    assert await submit(bus, SHARD, limited, [made, tasks.item()]) == ["pending", "full"]


async def test_indexes_are_written_capped_and_expire(bus: Bus) -> None:
    id = await tasks.submitted(bus, session="s1")
    for index in (SHARD.tenant("default"), SHARD.session("s1")):
        assert await bus.commands.call("ZRANGE", index, 0, -1) == [id.encode()]
        assert 0 < await tasks.ttl_ms(bus, index) <= CONFIG.limits.results_kept_s * 1000
    old: list[str | int] = []
    for score in range(INDEX_LENGTH):
        old += (score, f"old{score}")
    await bus.commands.call("ZADD", SHARD.session("s1"), *old)
    newest = await tasks.submitted(bus, session="s1")
    assert await bus.commands.call("ZCARD", SHARD.session("s1")) == INDEX_LENGTH
    assert await bus.commands.call("ZRANGE", SHARD.session("s1"), -2, -1) == sorted([id.encode(), newest.encode()])


async def test_only_a_task_of_a_session_is_announced_on_the_bus(bus: Bus) -> None:
    await tasks.submitted(bus)
    assert await tasks.entries(bus, SHARD.bus(0)) == []
    id = await tasks.submitted(bus, session="s1")
    ((_, fields),) = await tasks.entries(bus, SHARD.bus(0))
    assert fields == {b"t": id.encode(), b"s": b"s1", b"e": b'{"type":"pending.v1","model":"echo-1","lane":"normal"}'}


@pytest.mark.keeps_keys
@pytest.mark.parametrize(
    "key",
    [
        *(SHARD.arrivals, SHARD.expiry, SHARD.attached),
        *tasks.ORDER,
        *(SHARD.tenant("default"), SHARD.session("s1"), SHARD.bus(0), SHARD.outbox),
    ],
)
@pytest.mark.parametrize("cancelled", [False, True])
async def test_wrong_type_is_named_and_nothing_is_written(bus: Bus, key: str, cancelled: bool) -> None:
    made = tasks.item(session="s1", reply_to="orders", attached=True)
    if cancelled:  # before it came
        await cancel(bus, SHARD, tasks.LIMITS, [made.id])
    await assert_refused_whole(bus, key, lambda: submit(bus, SHARD, CONFIG, [made]))


@pytest.mark.keeps_keys
async def test_key_of_another_type_that_keeps_it_from_ending_is_named_and_nothing_is_written(bus: Bus) -> None:
    made = tasks.item(metered="1", cache="ab12 60000 use")
    await cancel(bus, SHARD, tasks.LIMITS, [made.id])
    ends = (SHARD.log(made.id), tasks.BACKLOGS[1], SHARD.running("default"), SHARD.outbox, SHARD.followers("ab12"))
    for key in ends:
        await assert_refused_whole(bus, key, lambda: submit(bus, SHARD, CONFIG, [made]))
        await bus.commands.call("DEL", key)


@pytest.mark.keeps_keys
async def test_one_spoiled_task_does_not_disturb_its_neighbours(bus: Bus) -> None:
    items = [tasks.item() for _ in range(3)]
    key = SHARD.task(items[1].id)
    await spoil(bus, key)
    assert await submit(bus, SHARD, CONFIG, items) == ["new", f"wrongtype {key}", "new"]


async def test_full_memory_refuses_submit_but_lets_what_is_there_end(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand, waiting = await tasks.handed(bus, owner), await tasks.submitted(bus)
    await bus.commands.call("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(CommandRefused, match=r"^OOM"):
            await submit(bus, SHARD, CONFIG, [tasks.item()])
        (started,) = await start(bus, owner, [hand])
        assert not isinstance(started, str)
        assert await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 2)) == "ok"
        assert await tasks.finish_one(bus, owner, tasks.ending(hand, 3, 2)) == "ok"
        assert await tasks.admit_all(bus) != []
        assert (await dispatch(bus, SHARD, tasks.CONFIG)).handed_out == 1
        assert await cancel(bus, SHARD, tasks.LIMITS, [waiting]) == ["cancelled"]
    finally:
        await bus.commands.call("CONFIG", "SET", "maxmemory", 0)


async def test_batch_leaves_room_in_the_backlog_for_what_is_more_urgent(bus: Bus) -> None:
    """One tenant's batch shut the door for everybody's questions."""
    limited = tasks.config(backlog=10)
    filled = [await submit(bus, SHARD, limited, [tasks.item(lane=Lane.BATCH)]) for _ in range(9)]
    assert filled == [["new"]] * 8 + [["full"]]
    assert await submit(bus, SHARD, limited, [tasks.item(lane=Lane.NORMAL) for _ in range(2)]) == ["new", "full"]
    assert await submit(bus, SHARD, limited, [tasks.item(lane=Lane.INTERACTIVE) for _ in range(2)]) == ["new", "full"]
