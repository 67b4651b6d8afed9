"""The ack contract, rule by rule, against a real Redis."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from shared.bus import consume
from shared.bus.client import Bus
from shared.bus.consume import Consumer, Entry, Unfinished, settle
from shared.bus.streams import ensure_group
from shared.errors import BusError, BusUnavailable, CommandRefused, ConnectionLost, MemoryFull
from tests.support.redis import Proxy, spoil
from tests.support.waiting import wait_until

STREAM, GROUP = "hr:requests", "front"


class Handler:
    """Remembers what it was given; does what it is told."""

    def __init__(self, *, names_done: bool = True) -> None:
        self.seen: list[Entry] = []
        self.faults: list[Exception] = []
        """Raised by the next calls, one each."""
        self.names_done = names_done
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, entries: list[Entry]) -> Sequence[bytes]:
        self.seen += entries
        await self.open.wait()
        if self.faults:
            raise self.faults.pop(0)
        return [entry.id for entry in entries] if self.names_done else ()

    def words(self) -> list[bytes]:
        return [entry.fields.get(b"word", b"") for entry in self.seen]


@asynccontextmanager
async def consuming(
    bus: Bus, handle: consume.Handler, name: str = "c1", *, count: int = 10, shared: bool = True
) -> AsyncIterator[Consumer]:
    consumer = Consumer(bus, stream=STREAM, group=GROUP, name=name, handle=handle, count=count, shared=shared)
    running = asyncio.create_task(consumer.run())
    try:
        yield consumer
    finally:
        if isinstance(handle, Handler):
            handle.open.set()
        while not running.done():  # a wake-up that came before the read blocked is lost
            await consumer.stop()
            await asyncio.wait([running], timeout=0.05)
        await running


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A consumer is taken for dead after a moment, so that a test can wait for it."""
    monkeypatch.setattr(consume, "RECLAIM_AFTER_MS", 50)
    monkeypatch.setattr(consume, "BLOCK_MS", 20)
    monkeypatch.setattr(consume, "PAUSE_S", (0.01, 0.05))
    caplog.set_level(logging.CRITICAL)


async def add(bus: Bus, *words: str) -> None:
    for word in words:
        await bus.commands.call("XADD", STREAM, "*", "word", word)


async def pending(bus: Bus) -> int:
    return int((await bus.commands.call("XPENDING", STREAM, GROUP))[0])


async def consumers(bus: Bus) -> list[bytes]:
    return [found[1] for found in await bus.commands.call("XINFO", "CONSUMERS", STREAM, GROUP)]


async def abandon(bus: Bus, name: str, count: int = 10) -> list[bytes]:
    """A consumer reads, and is never heard of again."""
    await ensure_group(bus, STREAM, GROUP)
    reply = await bus.commands.call("XREADGROUP", "GROUP", GROUP, name, "COUNT", count, "STREAMS", STREAM, ">")
    return [entry for entry, _ in reply[0][1]]


async def drained(bus: Bus) -> bool:
    return await bus.commands.call("XLEN", STREAM) == 0 and await pending(bus) == 0


async def test_entries_named_done_are_acknowledged_and_deleted(bus: Bus) -> None:
    await add(bus, "before")
    handle = Handler()
    async with consuming(bus, handle):
        await wait_until(lambda: handle.words() == [b"before"], "what was published before the group stood is read")
        await add(bus, "after")
        await wait_until(lambda: drained(bus), "everything is acknowledged and deleted")
    assert handle.words() == [b"before", b"after"]


async def test_acknowledgement_is_not_lost_when_the_consumer_stops_at_once(bus: Bus) -> None:
    handle = Handler()
    handle.open.clear()
    async with consuming(bus, handle) as consumer:
        await add(bus, "one")
        await wait_until(lambda: handle.seen, "the entry is being handled")
        await consumer.stop()
    assert await drained(bus)


async def test_entries_that_are_not_named_stay_pending_and_come_again(bus: Bus) -> None:
    handle = Handler(names_done=False)
    async with consuming(bus, handle):
        await add(bus, "one")
        await wait_until(lambda: handle.seen, "the entry comes")
        assert await pending(bus) == 1
        handle.names_done = True
        await wait_until(lambda: drained(bus), "it comes again, and is named")
    assert set(handle.words()) == {b"one"}


async def test_handler_that_raises_acknowledges_nothing_and_gets_the_batch_again(bus: Bus) -> None:
    handle = Handler()
    handle.faults = [ValueError("a bug")]
    async with consuming(bus, handle) as consumer:
        await add(bus, "one", "two")
        await wait_until(lambda: consumer.fault is not None, "the fault is told")
        assert "a bug" in str(consumer.fault)
        await wait_until(lambda: drained(bus), "all comes again")
        await wait_until(lambda: consumer.fault is None, "the fault is over")
    assert set(handle.words()) == {b"one", b"two"}


async def test_nothing_new_is_read_before_what_redis_kept_the_handler_from_is_dealt_with(bus: Bus) -> None:
    """Read on, and a full Redis would hold each refused entry in its pending list, to be claimed again 50 at a time."""
    handle, full = Handler(), True

    async def refuse_all_but_one(entries: list[Entry]) -> Sequence[bytes]:
        await handle(entries)
        done = [entry.id for entry in entries if not full or entry.fields[b"word"] == b"cancel"]
        if len(done) < len(entries):
            raise Unfinished("full", done)
        return done

    await add(bus, "cancel", "a", "b", *(str(n) for n in range(50)))
    async with consuming(bus, refuse_all_but_one, count=3) as consumer:
        await wait_until(lambda: len(handle.seen) > 20, "they come again and again")
        assert set(handle.words()) == {b"cancel", b"a", b"b"}
        assert handle.words().count(b"cancel") == 1
        assert consumer.fault is not None
        full = False
        await wait_until(lambda: drained(bus), "all are dealt with")
        await wait_until(lambda: consumer.fault is None, "the fault is over")


@pytest.mark.parametrize("error", [MemoryFull("OOM"), BusUnavailable("gone"), ConnectionLost("cut")])
def test_redis_that_is_out_of_reach_or_full_holds_up_all_and_what_was_done_is_named(error: BusError) -> None:
    entries = [Entry(b"1-0", {}), Entry(b"2-0", {}), Entry(b"3-0", {})]
    with pytest.raises(Unfinished, match=f"2 entries must wait: {error}") as unfinished:
        settle(entries, [None, error, CommandRefused("ERR")])
    assert unfinished.value.done == [b"1-0"]


def test_entry_that_redis_refuses_for_its_own_sake_holds_up_no_other() -> None:
    entries = [Entry(b"1-0", {}), Entry(b"2-0", {})]
    assert settle(entries, [CommandRefused("ERR this one"), None]) == [b"2-0"]


async def test_delivery_that_was_lost_with_the_connection_comes_again(bus: Bus) -> None:
    """The server has handed the entry to this consumer; the reply never arrived."""
    await add(bus, "lost")
    await abandon(bus, "c1")
    handle = Handler()
    async with consuming(bus, handle, shared=False):
        await wait_until(lambda: drained(bus), "the own history is read")
    assert handle.words() == [b"lost"]


async def test_long_history_comes_again_whole_also_where_nobody_reclaims(bus: Bus) -> None:
    """A work stream is read by one worker only; what was delivered and lost is more than one read may carry."""
    await add(bus, *(str(n) for n in range(7)))
    await abandon(bus, "c1")
    handle = Handler()
    async with consuming(bus, handle, count=3, shared=False):
        await wait_until(lambda: drained(bus), "every page of the own history is read")
    assert handle.words() == [str(n).encode() for n in range(7)]


async def test_ghosts_of_deleted_entries_are_acknowledged_and_do_not_come_back(bus: Bus) -> None:
    await add(bus, "deleted")
    (id,) = await abandon(bus, "c1")
    await bus.commands.call("XDEL", STREAM, id)
    handle = Handler()
    async with consuming(bus, handle):
        await wait_until(lambda: drained(bus), "the ghost is acknowledged")
    assert handle.seen == [Entry(id, {})]


async def test_entries_of_a_dead_consumer_are_reclaimed(bus: Bus) -> None:
    await add(bus, "orphan")
    await abandon(bus, "dead")
    handle = Handler()
    async with consuming(bus, handle):
        await wait_until(lambda: drained(bus), "the orphan is reclaimed")
    assert handle.words() == [b"orphan"]


async def test_reclaiming_reaches_the_tail_of_a_long_list(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consume, "RECLAIM_PAGE", 2)
    words = [str(n) for n in range(9)]
    await add(bus, *words)
    await abandon(bus, "dead")
    handle = Handler()
    handle.names_done = False  # the head of the list stays: the cursor has to pass it
    async with consuming(bus, handle):
        seen = {word.encode() for word in words}
        await wait_until(lambda: seen <= set(handle.words()), "every orphan was handled")
        handle.names_done = True
        await wait_until(lambda: drained(bus), "and is acknowledged")


async def test_reclaiming_is_not_done_in_every_pass(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consume, "RECLAIM_AFTER_MS", 5000)
    await bus.commands.call("CONFIG", "RESETSTAT")
    handle = Handler()
    async with consuming(bus, handle):
        for n in range(20):
            await add(bus, str(n))
            await wait_until(lambda n=n: str(n).encode() in handle.words(), "the entry comes")  # type: ignore[misc]
    stats = (await bus.commands.call("INFO", "commandstats")).decode()
    assert "cmdstat_xautoclaim:calls=1," in stats


async def test_killed_consumer_is_forgotten_once_its_entries_were_taken_over(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consume, "FORGET_AFTER_MS", 50)
    await add(bus, "orphan")
    await abandon(bus, "dead")
    handle = Handler()
    async with consuming(bus, handle):
        await wait_until(lambda: drained(bus), "the orphan is taken over")

        async def is_forgotten() -> bool:
            return await consumers(bus) == [b"c1"]

        await wait_until(is_forgotten, "nobody but the live one is left")


async def test_what_the_only_consumer_has_lost_sight_of_comes_again_while_it_is_pending(bus: Bus) -> None:
    """A slot of a worker was held for good by an entry that it had passed over: nobody else reads its stream."""
    handle = Handler(names_done=False)
    async with consuming(bus, handle, shared=False):
        await add(bus, "passed over")
        await wait_until(lambda: len(handle.seen) > 2, "it comes again and again")
        handle.names_done = True
        await wait_until(lambda: drained(bus), "until it is dealt with")
    assert set(handle.words()) == {b"passed over"}


async def test_entries_of_a_live_consumer_are_not_claimed_when_nobody_shares(bus: Bus) -> None:
    await add(bus, "theirs")
    await abandon(bus, "other")
    handle = Handler()
    async with consuming(bus, handle, shared=False) as consumer:
        await add(bus, "ours")
        await wait_until(lambda: handle.seen, "a new entry comes")
        passed = consumer.last_pass_s
        await wait_until(lambda: consumer.last_pass_s != passed, "another pass is made")
    assert handle.words() == [b"ours"]


async def test_group_is_made_again_after_flushall(bus: Bus) -> None:
    handle = Handler()
    async with consuming(bus, handle) as consumer:
        await wait_until(lambda: consumer.last_pass_s, "it reads")
        await bus.commands.call("FLUSHALL")
        await add(bus, "after")
        await wait_until(lambda: handle.words() == [b"after"], "it reads again")


async def test_wrong_type_is_told_as_a_fault_and_recovered_from(bus: Bus) -> None:
    handle = Handler()
    await spoil(bus, STREAM)
    async with consuming(bus, handle) as consumer:
        await wait_until(lambda: consumer.fault, "the fault is told")
        assert "WRONGTYPE" in str(consumer.fault)
        assert consumer.last_pass_s is None
        await bus.commands.call("DEL", STREAM)
        await add(bus, "after")
        await wait_until(lambda: drained(bus), "it reads again")
        await wait_until(lambda: consumer.fault is None, "the fault is over")


@pytest.mark.parametrize(
    "fields",
    [("\xff", "\xff"), ("", ""), ("a", "1", "a", "2"), ("word", "x" * 100_000)],
    ids=["bytes", "empty", "twice", "long"],
)
async def test_strange_entries_are_handed_over_once(bus: Bus, fields: tuple[str, ...]) -> None:
    handle = Handler()
    async with consuming(bus, handle):
        await bus.commands.call("XADD", STREAM, "*", *(field.encode("latin-1") for field in fields))
        await add(bus, "good")
        await wait_until(lambda: drained(bus), "both are dealt with")
    assert len(handle.seen) == 2


async def test_connection_cut_again_and_again_loses_nothing(redis_url: str, bus: Bus) -> None:
    handle = Handler()
    async with (
        Proxy(redis_url) as proxy,
        Bus(proxy.url, name="cut") as through,
        consuming(through, handle) as consumer,
    ):
        for n in range(5):
            await add(bus, str(n))
            await wait_until(lambda n=n: str(n).encode() in handle.words(), "the entry comes")  # type: ignore[misc]
            proxy.cut()
        await wait_until(lambda: drained(bus), "everything is acknowledged")
        await wait_until(lambda: consumer.fault is None, "the fault is over")


async def test_consumer_leaves_its_group_when_nothing_is_pending(bus: Bus) -> None:
    handle = Handler()
    async with consuming(bus, handle):
        await add(bus, "one")
        await wait_until(lambda: drained(bus), "it is acknowledged")
    assert await consumers(bus) == []


async def test_consumer_with_pending_entries_stays_in_the_group_for_whoever_reclaims(bus: Bus) -> None:
    handle = Handler(names_done=False)
    async with consuming(bus, handle):
        await add(bus, "one")
        await wait_until(lambda: handle.seen, "the entry comes")
    assert await consumers(bus) == [b"c1"]
    assert await pending(bus) == 1
    heir = Handler()
    async with consuming(bus, heir, "c2"):
        await wait_until(lambda: drained(bus), "the heir takes it over")


async def test_two_consumers_share_the_entries(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consume, "RECLAIM_AFTER_MS", 5000)
    one, two = Handler(), Handler()
    async with consuming(bus, one, "c1", count=1), consuming(bus, two, "c2", count=1):
        await add(bus, *(str(n) for n in range(20)))
        await wait_until(lambda: drained(bus), "everything is acknowledged")
    assert sorted(one.words() + two.words()) == sorted(str(n).encode() for n in range(20))


async def test_group_of_a_name_that_is_refused_raises(bus: Bus) -> None:
    await spoil(bus, STREAM)
    with pytest.raises(BusError):
        await ensure_group(bus, STREAM, GROUP)
