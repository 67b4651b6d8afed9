"""settle.lua: a reservation ends once, and what was not used is given back where it counted."""

import asyncio

import pytest

from shared.bus.client import Bus
from shared.errors import WrongKeyType
from shared.keys import quota
from shared.quota import KEPT_MS, LOOK_MS, MINUTE_MS, Settling, Taking, Window, settle, take, token_window
from tests.shared.lua.test_take import NO_LIMIT, TENANT, held, redis_ms, reserved
from tests.support.redis import snapshot, spoil

WINDOWS = [Window(100, 60_000, 1000), token_window(1000), NO_LIMIT, token_window(1000)]


async def taken(bus: Bus, id: str = "t1", tokens: int = 100) -> None:
    assert await take(bus, TENANT, "k1", WINDOWS, [Taking(id, tokens)]) == ["taken"]


async def settle_one(bus: Bus, used: int | str, id: str = "t1") -> str:
    (verdict,) = await settle(bus, TENANT, [Settling(id, used)])
    return verdict


async def tokens(bus: Bus) -> tuple[int, int]:
    """What counts for the tenant, and for the key."""
    return await held(bus, "tokens"), await held(bus, "tokens:k1")


async def shift(bus: Bus, by_ms: int) -> None:
    """The reservation of t1, and what it took, happened so much earlier."""
    reserved_tokens, bucket, key_bucket, key = (await reserved(bus))["t1"]
    value = f"{reserved_tokens} {int(bucket) - by_ms} {int(key_bucket) - by_ms} {key}"
    await bus.commands.call("HSET", quota(TENANT, "reserved"), "t1", value)
    for window, end in ((quota(TENANT, "tokens"), bucket), (quota(TENANT, "tokens:k1"), key_bucket)):
        await bus.commands.call("HDEL", window, end)
        await bus.commands.call("HSET", window, int(end) - by_ms, reserved_tokens)
        await bus.commands.call("PEXPIRE", window, MINUTE_MS)


@pytest.mark.parametrize(("used", "counted"), [(0, 0), (30, 30), (100, 100), (130, 130)])
async def test_what_was_used_stays_counted_and_the_reservation_is_gone(bus: Bus, used: int, counted: int) -> None:
    await taken(bus)
    assert await settle_one(bus, used) == "settled"
    assert await tokens(bus) == (counted, counted)
    assert await reserved(bus) == {}
    assert await bus.commands.call("EXISTS", quota(TENANT, "looks")) == 0
    assert await held(bus, "requests") == 1, "the request was made"


async def test_a_repeat_and_an_unknown_task_change_nothing(bus: Bus) -> None:
    await taken(bus)
    await settle_one(bus, 30)
    before = await snapshot(bus)
    assert [await settle_one(bus, 0), await settle_one(bus, 500), await settle_one(bus, 1, "t9")] == ["unknown"] * 3
    assert await snapshot(bus) == before


async def test_what_is_given_back_can_be_taken_at_once(bus: Bus) -> None:
    await taken(bus, "t1", 1000)
    (verdict,) = await take(bus, TENANT, "k1", WINDOWS, [Taking("t2", 400)])
    assert verdict.startswith("over ")
    await settle_one(bus, 600)
    await taken(bus, "t2", 400)


async def test_nothing_is_given_back_to_a_span_that_it_was_not_taken_from(bus: Bus) -> None:
    await taken(bus, "t1", 100)
    await shift(bus, MINUTE_MS + 1000)
    await taken(bus, "t2", 50)
    assert await settle_one(bus, 0) == "settled"
    assert await tokens(bus) == (50, 50)


async def test_what_was_used_beyond_it_is_charged_where_it_counts(bus: Bus) -> None:
    """In its own bucket, or in the present one if that has left the span."""
    await taken(bus, "t1", 100)
    await shift(bus, 30_000)
    await settle_one(bus, 130)
    assert await bus.commands.call("HLEN", quota(TENANT, "tokens")) == 1
    await bus.commands.call("DEL", quota(TENANT, "tokens"), quota(TENANT, "tokens:k1"))
    await taken(bus, "t1", 100)
    await shift(bus, MINUTE_MS + 1000)
    await bus.commands.call("DEL", quota(TENANT, "tokens"), quota(TENANT, "tokens:k1"))
    await settle_one(bus, 130)
    assert await tokens(bus) == (30, 30)
    (end,) = await bus.commands.call("HKEYS", quota(TENANT, "tokens"))
    assert 0 < int(end) - await redis_ms(bus) + 1000 <= 2000
    assert 0 < await bus.commands.call("PTTL", quota(TENANT, "tokens")) <= 2 * MINUTE_MS


async def test_a_window_that_it_was_not_counted_in_is_left_alone(bus: Bus) -> None:
    """The limit of the tenant came with a reload, after the task."""
    assert await take(bus, TENANT, "k1", [*WINDOWS[:1], *[NO_LIMIT] * 3], [Taking("t1", 100)]) == ["taken"]
    await taken(bus, "t2", 50)
    await settle_one(bus, 10)
    assert await tokens(bus) == (50, 50)


async def test_the_look_at_a_task_that_goes_on_is_put_off(bus: Bus) -> None:
    await taken(bus)
    before = await reserved(bus)
    assert await settle_one(bus, "") == "later"
    assert await reserved(bus) == before
    look_ms = float(await bus.commands.call("ZSCORE", quota(TENANT, "looks"), "t1"))
    assert 0 <= await redis_ms(bus) + LOOK_MS - look_ms < 10_000
    assert 0 < await bus.commands.call("PTTL", quota(TENANT, "reserved")) <= KEPT_MS
    assert await settle_one(bus, "", "t9") == "unknown"


async def test_tasks_of_several_keys_are_settled_in_one_call(bus: Bus) -> None:
    await taken(bus, "t1", 100)
    assert await take(bus, TENANT, "k2", WINDOWS, [Taking("t2", 200)]) == ["taken"]
    assert await take(bus, TENANT, "", WINDOWS[:2] + [NO_LIMIT] * 2, [Taking("t3", 300)]) == ["taken"]
    settling = [Settling("t1", 1), Settling("t2", 2), Settling("t3", 3), Settling("t4", 4)]
    assert await settle(bus, TENANT, settling) == ["settled", "settled", "settled", "unknown"]
    assert (await tokens(bus), await held(bus, "tokens:k2")) == ((6, 1), 2)


async def test_rivals_settle_a_reservation_once(redis_url: str, bus: Bus) -> None:
    for n in range(50):
        await taken(bus, f"t{n}", 10)
    async with Bus(redis_url, name="rival") as rival:
        calls = [settle_one(who, 5, f"t{n}") for n in range(50) for who in (bus, rival)]
        verdicts = await asyncio.gather(*calls)
    assert (verdicts.count("settled"), verdicts.count("unknown")) == (50, 50)
    assert await tokens(bus) == (250, 250)


@pytest.mark.parametrize("what", ["reserved", "looks", "tokens", "tokens:k1"])
async def test_a_wrong_type_is_named_and_nothing_is_written(bus: Bus, what: str) -> None:
    await taken(bus)
    await spoil(bus, quota(TENANT, what))
    before = await snapshot(bus)
    for used in (10, ""):
        with pytest.raises(WrongKeyType, match=what):
            await settle_one(bus, used)
    assert await snapshot(bus) == before
