"""The stream door's orders to cancel: by our id, by the producer's own, before or after the task."""

import pytest

from services.scheduler.front import Front
from shared import keys
from shared.bus.client import Bus
from shared.bus.consume import Entry
from shared.submit import Submitter
from tests.support import tasks


@pytest.fixture
def front(bus: Bus) -> Front:
    return Front(bus, tasks.CONFIG, Submitter(bus, tasks.CONFIG))


async def say(front: Front, *entries: dict[str, str]) -> None:
    """The entries come in one read, and each is dealt with, whatever it says."""
    come = [
        Entry(f"{number}-0".encode(), {name.encode(): value.encode() for name, value in entry.items()})
        for number, entry in enumerate(entries, 1)
    ]
    assert await front.on_entries(come) == [entry.id for entry in come]


async def states(bus: Bus) -> list[str]:
    found = await bus.commands.call("KEYS", tasks.SHARD.task("*"))
    return sorted([(await bus.commands.call("HGET", key, "state")).decode() for key in found])


async def refusals(bus: Bus) -> list[str]:
    return [fields[b"reason"].decode() for _, fields in await tasks.entries(bus, keys.REFUSED)]


async def test_a_task_is_cancelled_by_our_id(front: Front, bus: Bus) -> None:
    task = await tasks.admitted(bus)
    await say(front, {"cancel": task}, {"cancel": task})
    assert (await tasks.fields(bus, task))["state"] == "cancelled"
    assert await refusals(bus) == []


async def test_a_task_is_cancelled_by_the_producers_own_id(front: Front, bus: Bus) -> None:
    await say(front, {"input_text": "x", "task_id": "order-17"}, {"input_text": "y", "task_id": "order-18"})
    await say(front, {"cancel": "order-17"})
    assert await states(bus) == ["cancelled", "pending"]


async def test_a_cancel_that_comes_first_is_remembered(front: Front, bus: Bus) -> None:
    """Doors are read by several schedulers at once, so an entry may overtake the one before it."""
    await say(front, {"cancel": "order-17"})
    await say(front, {"input_text": "x", "task_id": "order-17", "reply_to": "orders"})
    assert await states(bus) == ["cancelled"]
    assert await tasks.entries(bus, tasks.SHARD.arrivals) == []
    assert len(await tasks.entries(bus, tasks.SHARD.outbox)) >= 1


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"cancel": ""}, "`cancel` is empty"),
        ({"cancel": "a b"}, "`cancel` is 'a b'; allowed are 1 to 128"),
        ({"cancel": f"other.0.0.0.{'0' * 26}"}, "is not the id of a task"),
        ({"cancel": "x", "input_text": "y"}, "Beside `cancel` there may be no other field; found input_text."),
        ({"cancel": "x", "task": "{}"}, "Beside `cancel` there may be no other field; found task."),
    ],
)
async def test_a_faulty_cancel_is_refused_like_any_entry(
    front: Front, bus: Bus, entry: dict[str, str], reason: str
) -> None:
    await say(front, entry, {"input_text": "fine"})
    [refused] = await refusals(bus)
    assert reason in refused
    assert await states(bus) == ["pending"]


async def test_a_faulty_cancel_that_names_a_reply_stream_is_refused_there(front: Front, bus: Bus) -> None:
    await say(front, {"cancel": "x", "reply_to": "orders"})
    [(_, reply)] = await tasks.entries(bus, keys.reply("orders"))
    assert (reply[b"status"], b"found reply_to" in reply[b"reply"]) == (b"failed", True)
