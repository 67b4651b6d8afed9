"""The tail of a shard: every event somebody waits for, seen by every replica, and nothing that wedges it."""

import logging

import pytest
from msgspec import Raw

from services.inference.scripts import start
from shared.bus import tail as tail_module
from shared.bus.client import Bus
from shared.bus.tail import Tail, Tails
from shared.ids import Place
from shared.keys import reader_group
from shared.messages import Chunks, Event, Finished, Pending, Started, encode
from tests.support import tasks
from tests.support.redis import Proxy
from tests.support.tails import tailing
from tests.support.tasks import SHARD
from tests.support.waiting import wait_until

BUS = SHARD.bus(0)


class Ear:
    def __init__(self) -> None:
        self.heard: list[tuple[str, Event]] = []
        self.gaps = 0

    def on_event(self, entry: bytes, task_id: str, event: Event) -> None:
        self.heard.append((task_id, event))

    def on_gap(self) -> None:
        self.gaps += 1

    def kinds(self) -> list[type[Event]]:
        return [type(event) for _, event in self.heard]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tail_module, "BLOCK_MS", 20)
    caplog.set_level(logging.CRITICAL)


async def publish(bus: Bus, id: str = "t", session: str = "", n: int = 1) -> None:
    await bus.commands.call("XADD", BUS, "*", "t", id, "s", session, "e", tasks.chunks_event(n, n))


def numbers(ear: Ear) -> list[int]:
    return [event.first for _, event in ear.heard if isinstance(event, Chunks)]


async def test_listener_of_a_task_hears_its_events_and_no_others(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    async with tailing(bus) as tail:
        ear = Ear()
        hand = await tasks.handed(bus, owner)
        tail.listen(ear, task=hand.id)
        await tasks.ended(bus, owner)
        await start(bus, owner, [hand])
        await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 1))
        await wait_until(lambda: len(ear.heard) == 3, "the events of the task are heard")
    assert ear.kinds() == [Started, Chunks, Finished]
    assert {id for id, _ in ear.heard} == {hand.id}


async def test_listener_of_a_session_hears_all_its_tasks(bus: Bus) -> None:
    async with tailing(bus) as tail:
        ear = Ear()
        tail.listen(ear, session="s1")
        ids = [await tasks.submitted(bus, session=session) for session in ("s1", "s2", "s1")]
        await wait_until(lambda: len(ear.heard) == 2, "both are heard")
    assert [id for id, _ in ear.heard] == [ids[0], ids[2]]
    assert ear.kinds() == [Pending, Pending]


async def test_listener_of_task_and_session_hears_an_event_once(bus: Bus) -> None:
    async with tailing(bus) as tail:
        both, other = Ear(), Ear()
        tail.listen(both, session="s1")
        tail.listen(both, task="t")
        tail.listen(other, task="t")
        await publish(bus, session="s1")
        await wait_until(lambda: other.heard, "the event is heard")
    assert (len(both.heard), len(other.heard)) == (1, 1)


async def test_unlistened_hears_nothing_and_leaves_no_trace(bus: Bus) -> None:
    async with tailing(bus) as tail:
        gone, here = Ear(), Ear()
        tail.listen(gone, task="t")
        tail.listen(here, session="s1")
        tail.unlisten(gone, task="t")
        tail.unlisten(gone, task="never listened")
        await publish(bus, session="s1")
        await wait_until(lambda: here.heard, "the event is heard")
        assert gone.heard == []
        assert tail._tasks == {}


async def test_every_replica_hears_every_event(bus: Bus) -> None:
    async with tailing(bus, "r1") as one, tailing(bus, "r2") as two:
        ears = [Ear(), Ear()]
        for ear, tail in zip(ears, (one, two), strict=True):
            tail.listen(ear, task="t")
        await publish(bus)
        await wait_until(lambda: all(ear.heard for ear in ears), "both hear it")


async def test_all_partitions_are_read(bus: Bus) -> None:
    async with tailing(bus, partitions=3) as tail:
        ear = Ear()
        tail.listen(ear, task="t")
        for partition in range(3):
            event = tasks.chunks_event(partition + 1, partition + 1)
            await bus.commands.call("XADD", SHARD.bus(partition), "*", "t", "t", "s", "", "e", event)
        await wait_until(lambda: len(ear.heard) == 3, "an event of each partition is heard")


async def test_what_was_published_before_it_joined_is_not_read(bus: Bus) -> None:
    await publish(bus, n=1)
    async with tailing(bus) as tail:
        ear = Ear()
        tail.listen(ear, task="t")
        await publish(bus, n=2)
        await wait_until(lambda: ear.heard, "the new event is heard")
    assert numbers(ear) == [2]


@pytest.mark.parametrize(
    "fields",
    [("x", "y"), ("t", "t", "s", "", "e", "no json"), ("t", "t", "s", "", "e", '{"type":"unknown.v9"}'), ("t", b"\xff", "s", "", "e", "")],
    ids=["foreign", "no json", "unknown", "bytes"],
)  # fmt: skip
async def test_entry_that_is_not_ours_is_passed_over(bus: Bus, fields: tuple[str, ...]) -> None:
    """It must not come again for ever: the group is set to what was processed after each error."""
    async with tailing(bus) as tail:
        ear = Ear()
        tail.listen(ear, task="t")
        await publish(bus, n=1)
        await bus.commands.call("XADD", BUS, "*", *fields)
        await publish(bus, n=2)
        await wait_until(lambda: 2 in numbers(ear), "what comes behind it is heard")
    assert numbers(ear) == [1, 2]


async def test_event_that_is_too_deep_to_be_read_wedges_nothing(bus: Bus) -> None:
    deep = Chunks(attempt=1, first=1, last=1, chunks=[Raw(b"[" * 20_000 + b"]" * 20_000)])
    async with tailing(bus) as tail:
        ear = Ear()
        tail.listen(ear, task="t")
        await bus.commands.call("XADD", BUS, "*", "t", "t", "s", "", "e", encode(deep))
        await publish(bus, n=2)
        await wait_until(lambda: numbers(ear) == [2], "the next event is heard")
        assert ear.gaps == 0


async def test_listener_that_fails_costs_the_others_nothing_and_the_entry_is_read_once(bus: Bus) -> None:
    class Broken(Ear):
        def on_event(self, entry: bytes, task_id: str, event: Event) -> None:
            super().on_event(entry, task_id, event)
            raise ValueError("broken")

    async with tailing(bus) as tail:
        ear, broken = Ear(), Broken()
        tail.listen(broken, task="t")
        tail.listen(ear, session="s")
        await publish(bus, session="s", n=1)
        await publish(bus, session="s", n=2)
        await wait_until(lambda: 2 in numbers(ear), "what comes behind it is heard")
    assert (numbers(ear), numbers(broken), ear.gaps) == ([1, 2], [1, 2], 0)


async def test_group_destroyed_under_it_is_made_again_and_listeners_are_told_of_the_gap(bus: Bus) -> None:
    async with tailing(bus) as tail:
        ear = Ear()
        tail.listen(ear, task="t")
        tail.listen(ear, session="s1")
        await publish(bus, n=1)
        await wait_until(lambda: ear.heard, "the first event is heard")
        await bus.commands.call("XGROUP", "DESTROY", BUS, reader_group("r1"))
        await publish(bus, n=2)
        await wait_until(lambda: ear.gaps, "the gap is told")
        await wait_until(lambda: numbers(ear) == [1, 2], "what was published meanwhile is heard, once")
        await wait_until(lambda: tail.fault is None, "the fault is over")


async def test_reading_goes_on_after_flushall(bus: Bus) -> None:
    async with tailing(bus) as tail:
        ear = Ear()
        tail.listen(ear, task="t")
        await publish(bus, n=1)
        await wait_until(lambda: ear.heard, "the first event is heard")
        await bus.commands.call("FLUSHALL")
        await wait_until(lambda: ear.gaps, "the gap is told")
        await publish(bus, n=2)
        await wait_until(lambda: numbers(ear) == [1, 2], "the next event is heard")


async def test_cut_connection_is_a_gap_and_loses_nothing(redis_url: str, bus: Bus) -> None:
    async with Proxy(redis_url) as proxy, Bus(proxy.url, name="cut") as through, tailing(through) as tail:
        ear = Ear()
        tail.listen(ear, task="t")
        proxy.cut()
        await publish(bus, n=1)
        await wait_until(lambda: 1 in numbers(ear), "the event is heard")
        assert ear.gaps
    assert numbers(ear) == [1]


async def test_delivery_that_was_lost_with_the_connection_is_heard(
    redis_url: str, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis takes for delivered what it has sent, so the group is set back to what was processed."""
    monkeypatch.setattr(tail_module, "BLOCK_MS", 2000)
    async with Proxy(redis_url) as proxy, Bus(proxy.url, name="cut") as through, tailing(through) as tail:
        ear = Ear()
        tail.listen(ear, task="t")
        await wait_until(lambda: reading(bus), "the read waits at the server")
        proxy.stall()
        await publish(bus)
        ((last, _),) = await tasks.entries(bus, BUS)
        await wait_until(lambda: delivered(bus, last), "Redis has sent the event")
        proxy.cut()
        proxy.flow()
        await wait_until(lambda: 1 in numbers(ear), "the event is heard")


async def reading(bus: Bus) -> bool:
    return b"cmd=xreadgroup" in await bus.commands.call("CLIENT", "LIST")


async def delivered(bus: Bus, entry: bytes) -> bool:
    (group,) = await tasks.groups(bus, BUS)
    return entry in group


async def test_group_has_a_lease_while_it_is_read_and_goes_with_its_reader(bus: Bus) -> None:
    async with tailing(bus):
        lease_ms = float(await bus.commands.call("ZSCORE", SHARD.readers, reader_group("r1")))
        seconds, microseconds = map(int, await bus.commands.call("TIME"))
        assert 0 < lease_ms - seconds * 1000 - microseconds // 1000 <= tail_module.LEASE_MS
        assert [group[1] for group in await tasks.groups(bus, BUS)] == [reader_group("r1").encode()]
    assert await tasks.groups(bus, BUS) == []
    assert await bus.commands.call("EXISTS", SHARD.readers) == 0


async def test_tails_are_found_by_place(bus: Bus) -> None:
    tail = Tail(bus, pool="smol", shard=0, partitions=1, replica="r1")
    tails = Tails([tail])
    assert list(tails) == [tail]
    assert tails.of(Place("smol", 0, 0, 0)) is tail
    assert tails.of(Place("smol", 1, 0, 0)) is None
