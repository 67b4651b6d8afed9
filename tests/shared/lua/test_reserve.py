"""reserve.lua: a producer's key is bound to one task and one body."""

import pytest

from shared import keys
from shared.bus.client import Bus
from shared.errors import IdempotencyConflict, WrongKeyType
from shared.messages import Task
from shared.request import Request
from shared.submit import ANY_BODY, RESERVE, Submitter
from tests.support import tasks
from tests.support.redis import spoil
from tests.support.tasks import CONFIG

KEY = keys.idempotency("default", "order-7")


async def reserve(bus: Bus, id: str, fingerprint: str, kept_ms: int = 60_000) -> list[bytes]:
    return list(await bus.run(RESERVE, [KEY], [id, fingerprint, kept_ms]))


def request(body: bytes = tasks.BODY) -> Request:
    task = Task(route="/v1/chat/completions", model=tasks.MODEL, tenant="default", task_id="order-7")
    return Request(task=task, body=body, pool="smol")


async def test_first_sender_gets_the_key_and_it_expires(bus: Bus) -> None:
    assert await reserve(bus, "id1", "f1") == [b"reserved", b"id1"]
    assert 0 < await tasks.ttl_ms(bus, KEY) <= 60_000


async def test_repeat_with_the_same_body_answers_the_first_id(bus: Bus) -> None:
    await reserve(bus, "id1", "f1")
    assert await reserve(bus, "id1", "f1") == [b"known", b"id1"]
    assert await reserve(bus, "id2", "f1") == [b"known", b"id1"]


async def test_rival_with_another_body_is_a_conflict_and_changes_nothing(bus: Bus) -> None:
    await reserve(bus, "id1", "f1")
    assert await reserve(bus, "id2", "f2") == [b"conflict", b"id1"]
    assert await bus.commands.call("GET", KEY) == b"f1 id1"


async def test_key_that_was_cancelled_before_its_task_came_leads_to_the_id_that_holds_the_note(bus: Bus) -> None:
    assert await reserve(bus, "id1", ANY_BODY) == [b"reserved", b"id1"]
    assert await reserve(bus, "id2", ANY_BODY) == [b"known", b"id1"]
    assert await reserve(bus, "id3", "f3", kept_ms=600_000) == [b"known", b"id1"]
    assert 0 < await tasks.ttl_ms(bus, KEY) <= 60_000
    assert await reserve(bus, "id4", "f4") == [b"conflict", b"id1"]


async def test_cancel_of_a_known_key_gets_its_id_and_keeps_the_first_body(bus: Bus) -> None:
    await reserve(bus, "id1", "f1")
    assert await reserve(bus, "id2", ANY_BODY) == [b"known", b"id1"]
    assert await bus.commands.call("GET", KEY) == b"f1 id1"


async def test_wrong_type_is_named_and_left_as_it_is(bus: Bus) -> None:
    await spoil(bus, KEY, command="RPUSH")
    assert await reserve(bus, "id1", "f1") == [b"wrongtype", KEY.encode()]
    assert await bus.commands.call("LRANGE", KEY, 0, -1) == [b"not ours"]
    with pytest.raises(WrongKeyType, match="order-7"):
        await Submitter(bus, CONFIG).submit(request(), tasks.new_id())
    await bus.commands.call("DEL", KEY)


async def test_submitter_makes_one_task_for_a_key_however_often_it_is_sent(bus: Bus) -> None:
    submitter = Submitter(bus, CONFIG)
    first = await submitter.submit(request(), tasks.new_id())
    again = await submitter.submit(request(), tasks.new_id())
    assert (first.new, again.new) == (True, False)
    assert first.id == again.id
    with pytest.raises(IdempotencyConflict, match="order-7"):
        await submitter.submit(request(b"{}"), tasks.new_id())


async def test_submitter_keeps_a_key_for_as_long_as_its_task_may_live_and_be_asked_for(bus: Bus) -> None:
    await Submitter(bus, CONFIG).submit(request(), tasks.new_id())
    limits = CONFIG.limits
    kept_ms = (limits.waiting_s + limits.results_kept_s) * 1000
    assert kept_ms - 60_000 < await tasks.ttl_ms(bus, KEY) <= kept_ms


async def test_reservation_left_by_a_sender_that_died_is_completed_by_the_next(bus: Bus) -> None:
    """The two steps are not atomic: a reservation may stand without its task."""
    submitter = Submitter(bus, CONFIG)
    id = tasks.new_id()
    await submitter._reserve(request(), id)
    found = await submitter.submit(request(), tasks.new_id())
    assert (found.id, found.new) == (id, True)
