"""take.lua: requests and tokens are reserved once a task, and never more of them than a limit in any span."""

import asyncio
import re
from collections import Counter

import pytest

from shared.bus.client import Bus
from shared.bus.connection import Reply
from shared.errors import WrongKeyType
from shared.keys import quota
from shared.quota import FIRST_LOOK_MS, KEPT_MS, MINUTE_MS, Taking, Window, take, token_window
from tests.support.redis import snapshot, spoil
from tests.support.waiting import wait_until

TENANT = "acme"
NO_LIMIT = Window(0, 1000, 100)
LONG_MS = 600_000


def windows(requests: int = 0, tokens: int = 0, key_requests: int = 0, key_tokens: int = 0) -> list[Window]:
    """Spans that no test outlives."""
    limits = (requests, tokens, key_requests, key_tokens)
    return [Window(limit, LONG_MS, 1000) for limit in limits]


async def take_one(bus: Bus, id: str, tokens: int = 10, *, key: str = "", within: list[Window]) -> str:
    (verdict,) = await take(bus, TENANT, key, within, [Taking(id, tokens)])
    return verdict


async def held(bus: Bus, what: str) -> int:
    """What is counted in a window."""
    return sum(int(count) for count in await bus.commands.call("HVALS", quota(TENANT, what)))


async def reserved(bus: Bus) -> dict[str, list[str]]:
    flat = await bus.commands.call("HGETALL", quota(TENANT, "reserved"))
    return {id.decode(): value.decode().split(" ") for id, value in zip(flat[::2], flat[1::2], strict=True)}


async def redis_ms(bus: Bus) -> int:
    seconds, microseconds = await bus.commands.call("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


def wait_ms(verdict: str) -> int:
    return int(verdict.split(" ")[3])


async def test_what_is_taken_is_counted_reserved_and_expires(bus: Bus) -> None:
    assert await take_one(bus, "t1", 30, within=[Window(5, 1000, 20), token_window(100), NO_LIMIT, NO_LIMIT]) == "taken"
    assert (await held(bus, "requests"), await held(bus, "tokens")) == (1, 30)
    ((tokens, bucket, key_bucket, key),) = (await reserved(bus)).values()
    assert (tokens, key_bucket, key) == ("30", "0", "")
    assert 0 < int(bucket) - await redis_ms(bus) + 1000 <= 2000
    for what, longest_ms in (("requests", 2000), ("tokens", 2 * MINUTE_MS), ("reserved", KEPT_MS), ("looks", KEPT_MS)):
        assert 0 < await bus.commands.call("PTTL", quota(TENANT, what)) <= longest_ms
    look_ms = float(await bus.commands.call("ZSCORE", quota(TENANT, "looks"), "t1"))
    assert 0 <= await redis_ms(bus) + FIRST_LOOK_MS - look_ms < 10_000


async def test_a_repeat_takes_nothing_more(bus: Bus) -> None:
    within = windows(requests=5, tokens=100)
    assert [await take_one(bus, "t1", within=within) for _ in range(2)] == ["taken", "known"]
    assert await take(bus, TENANT, "", within, [Taking("t2", 10), Taking("t2", 10)]) == ["taken", "known"]
    assert (await held(bus, "requests"), await held(bus, "tokens")) == (2, 20)


async def test_the_limit_is_reached_and_never_exceeded(bus: Bus) -> None:
    verdicts = await take(bus, TENANT, "", windows(requests=3), [Taking(f"t{n}", 10) for n in range(5)])
    assert verdicts[:3] == ["taken"] * 3
    assert [verdict.split(" ")[:3] for verdict in verdicts[3:]] == [["over", "1", "3"]] * 2
    assert await held(bus, "requests") == 3


async def test_what_is_refused_leaves_nothing_behind(bus: Bus) -> None:
    within = windows(requests=5, tokens=100)
    await take_one(bus, "t1", 95, within=within)
    before = await snapshot(bus)
    assert (await take_one(bus, "t2", 6, within=within)).startswith("over 2 95 ")
    assert await snapshot(bus) == before
    assert await take_one(bus, "t3", 5, within=within) == "taken"


async def test_the_wait_is_until_enough_has_left(bus: Bus) -> None:
    """10, 20 and 30 tokens lie in three buckets, the oldest of which leaves first."""
    now_ms = await redis_ms(bus)
    ends = [now_ms - 500_000, now_ms - 400_000, now_ms - 300_000]
    for end, count in zip(ends, (10, 20, 30), strict=True):
        await bus.commands.call("HSET", quota(TENANT, "tokens"), end, count)
    within = windows(tokens=60)
    for tokens, end in ((1, ends[0]), (10, ends[0]), (11, ends[1]), (30, ends[1]), (31, ends[2]), (60, ends[2])):
        verdict = await take_one(bus, "t1", tokens, within=within)
        assert verdict.startswith("over 2 60 ")
        left_ms = end + LONG_MS - await redis_ms(bus)
        assert left_ms <= wait_ms(verdict) < left_ms + 10_000
    await bus.commands.call("DEL", quota(TENANT, "tokens"))


async def test_the_longest_wait_of_all_windows_is_told(bus: Bus) -> None:
    now_ms = await redis_ms(bus)
    await bus.commands.call("HSET", quota(TENANT, "requests"), now_ms - 100_000, 1)
    await bus.commands.call("HSET", quota(TENANT, "tokens:k1"), now_ms - 1000, 50)
    within = windows(requests=1, key_tokens=50)
    assert (await take_one(bus, "t1", key="k1", within=within)).startswith("over 4 50 ")
    await bus.commands.call("DEL", quota(TENANT, "requests"), quota(TENANT, "tokens:k1"))


async def test_a_bucket_counts_until_all_of_it_has_left_the_span(bus: Bus) -> None:
    now_ms = await redis_ms(bus)
    window = quota(TENANT, "requests")
    await bus.commands.call("HSET", window, now_ms - LONG_MS + 60_000, 1, now_ms - LONG_MS - 1, 7)
    within = windows(requests=2)
    assert await take_one(bus, "t1", within=within) == "taken"
    assert await bus.commands.call("HLEN", window) == 2, "what has left is removed"
    assert (await take_one(bus, "t2", within=within)).startswith("over 1 2 ")


async def test_what_has_left_can_be_taken_again(bus: Bus) -> None:
    within = [Window(2, 200, 20), NO_LIMIT, NO_LIMIT, NO_LIMIT]
    assert await take(bus, TENANT, "", within, [Taking("t1", 0), Taking("t2", 0)]) == ["taken", "taken"]
    taken = iter(range(3, 100_000))

    async def again() -> bool:
        return await take_one(bus, f"t{next(taken)}", within=within) == "taken"

    await wait_until(again, "the first two have left the span")


async def test_what_asks_for_more_than_the_limit_can_never_be_taken(bus: Bus) -> None:
    assert await take_one(bus, "t1", 101, within=windows(tokens=100)) == "never 2"
    assert await take_one(bus, "t1", 101, key="k1", within=windows(key_tokens=100)) == "never 4"
    assert await snapshot(bus) == {}


async def test_a_key_counts_for_itself_beside_its_tenant(bus: Bus) -> None:
    within = windows(requests=3, key_requests=2)
    verdicts = [await take_one(bus, f"t{n}", key="k1", within=within) for n in range(3)]
    assert [verdict.split(" ")[:2] for verdict in verdicts] == [["taken"], ["taken"], ["over", "3"]]
    assert await take_one(bus, "t4", key="k2", within=within) == "taken"
    assert (await take_one(bus, "t5", key="k2", within=within)).startswith("over 1 3 ")
    assert (await reserved(bus))["t4"][3] == "k2"


async def test_other_widths_after_a_reload_forget_nothing(bus: Bus) -> None:
    assert await take_one(bus, "t1", within=[Window(2, LONG_MS, 60_000), *windows()[1:]]) == "taken"
    assert await take_one(bus, "t2", within=[Window(2, LONG_MS, 700), *windows()[1:]]) == "taken"
    assert (await take_one(bus, "t3", within=[Window(2, LONG_MS, 900), *windows()[1:]])).startswith("over 1 2 ")


async def test_buckets_of_a_clock_that_was_set_back_count(bus: Bus) -> None:
    await bus.commands.call("HSET", quota(TENANT, "requests"), await redis_ms(bus) + LONG_MS, 2)
    within = windows(requests=3)
    assert await take_one(bus, "t1", within=within) == "taken"
    assert wait_ms(await take_one(bus, "t2", within=within)) > LONG_MS / 2
    await bus.commands.call("DEL", quota(TENANT, "requests"))


async def test_rivals_never_take_more_than_the_limit_together(redis_url: str, bus: Bus) -> None:
    """200 at once over two connections: exactly as many as fit."""
    within = windows(requests=150, tokens=1000)
    async with Bus(redis_url, name="rival") as rival:
        calls = [take_one((bus, rival)[n % 2], f"t{n}", 10, within=within) for n in range(200)]
        verdicts = await asyncio.gather(*calls)
    assert verdicts.count("taken") == 100
    assert (await held(bus, "requests"), await held(bus, "tokens"), len(await reserved(bus))) == (100, 1000, 100)


async def test_reservations_that_nobody_looks_at_any_more_are_forgotten(bus: Bus) -> None:
    """The memory is bounded, though no scheduler runs."""
    within = windows(requests=1000)
    await take(bus, TENANT, "", within, [Taking(f"old{n}", 0) for n in range(5)])
    old_ms = await redis_ms(bus) - KEPT_MS - 1000
    for n in range(5):
        await bus.commands.call("ZADD", quota(TENANT, "looks"), old_ms, f"old{n}")
    for n in range(3):
        await take_one(bus, f"new{n}", within=within)
    assert sorted(await reserved(bus)) == ["new0", "new1", "new2"]
    assert await bus.commands.call("ZCARD", quota(TENANT, "looks")) == 3


@pytest.mark.parametrize("what", ["reserved", "looks", "requests", "tokens", "requests:k1", "tokens:k1"])
async def test_a_wrong_type_is_named_and_nothing_is_written(bus: Bus, what: str) -> None:
    await spoil(bus, quota(TENANT, what))
    before = await snapshot(bus)
    with pytest.raises(WrongKeyType, match=what):
        await take_one(bus, "t1", key="k1", within=windows(9, 90, 9, 90))
    assert await snapshot(bus) == before


async def test_a_window_without_a_limit_is_not_touched(bus: Bus) -> None:
    await spoil(bus, quota(TENANT, "tokens"))
    assert await take_one(bus, "t1", within=windows(requests=1)) == "taken"


async def test_a_decision_costs_the_same_however_much_was_taken_before(bus: Bus) -> None:
    """Counted in commands of the server, without those of the connections themselves."""

    async def commands() -> Counter[str]:
        info: Reply = await bus.commands.call("INFO", "commandstats")
        found = re.findall(r"cmdstat_(\w+):calls=(\d+)", info.decode())
        idle = ("info", "ping", "hello", "client", "script", "config")
        return Counter({name: int(calls) for name, calls in found if not name.startswith(idle)})

    within = windows(10_000, 10_000, 10_000, 10_000)
    costs = []
    for n in range(3):
        before = await commands()
        await take_one(bus, f"t{n}", 1, key="k1", within=within)
        costs.append(await commands() - before)
        await take(bus, TENANT, "k1", within, [Taking(f"more{n}-{m}", 1) for m in range(100)])
    assert costs[0] == costs[1] == costs[2]
    assert costs[0]["hgetall"] == 4
