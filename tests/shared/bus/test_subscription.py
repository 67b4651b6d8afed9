"""One task's events: without gap, without repeat, from any cursor, whatever breaks in between."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator

import pytest

from services.inference.scripts import Hand, Owner, rebase, start
from services.scheduler.scripts import dispatch, reap
from shared.bus import subscription as module
from shared.bus import tail as tail_module
from shared.bus.client import Bus
from shared.bus.connection import Arg, Reply
from shared.bus.cursor import Cursor, entry_id
from shared.bus.subscription import Phase, Subscription
from shared.bus.tail import Tail
from shared.discard import discard
from shared.keys import reader_group
from shared.lifecycle import State
from shared.messages import Pending, Started, decode_event
from shared.submit import submit
from tests.support import tasks
from tests.support.redis import Proxy
from tests.support.tails import Recorder, tailing
from tests.support.tasks import SHARD
from tests.support.waiting import wait_until

CHUNKS = 40


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tail_module, "BLOCK_MS", 20)
    caplog.set_level(logging.CRITICAL)


@pytest.fixture
async def tail(bus: Bus) -> AsyncIterator[Tail]:
    async with tailing(bus) as tail:
        yield tail


@pytest.fixture
async def owner(bus: Bus) -> Owner:
    return await tasks.worker(bus)


async def publish(bus: Bus, owner: Owner, hand: Hand, *, upto: int = CHUNKS, attempt: int = 1) -> None:
    """One emit a chunk, then the end."""
    for n in range(1, upto):
        assert await tasks.emit_one(bus, owner, tasks.emission(hand, n, n, attempt=attempt)) == "ok"
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, upto, upto, attempt=attempt)) == "ok"


def whole(upto: int = CHUNKS) -> list[str]:
    return [*(str(n) for n in range(1, upto + 1)), "end"]


async def test_subscriber_from_the_start_sees_everything_live(bus: Bus, tail: Tail, owner: Owner) -> None:
    hand = await tasks.running(bus, owner)
    sink = Recorder()
    Subscription(bus, tail, hand.id, sink).open()
    await wait_until(lambda: sink.live, "it is live")
    await publish(bus, owner, hand)
    await wait_until(lambda: sink.finished, "the end is delivered")
    assert sink.story() == whole()
    assert sink.positions == sorted(sink.positions)


async def test_subscriber_of_a_task_that_is_not_submitted_yet_misses_nothing(
    bus: Bus, tail: Tail, owner: Owner
) -> None:
    made = tasks.item(session="s1")
    sink = Recorder()
    Subscription(bus, tail, made.id, sink).open_new()
    await submit(bus, SHARD, tasks.CONFIG, [made])
    await tasks.admit_all(bus)
    await dispatch(bus, SHARD, tasks.CONFIG)
    (hand,) = await tasks.hands(bus, owner)
    await start(bus, owner, [hand])
    await publish(bus, owner, hand, upto=3)
    await wait_until(lambda: sink.finished, "the end is delivered")
    assert [type(event) for event in sink.events[:2]] == [Pending, Started]
    assert sink.story() == whole(3)


@pytest.mark.parametrize("seed", range(6))
async def test_subscribers_racing_the_publisher_over_cut_connections_see_each_event_once(
    redis_url: str, bus: Bus, owner: Owner, seed: int
) -> None:
    chance = random.Random(seed)
    hand = await tasks.running(bus, owner)
    async with Proxy(redis_url) as proxy, Bus(proxy.url, name="cut") as through, tailing(through) as tail:
        publishing = asyncio.create_task(publish(bus, owner, hand))
        sinks = []
        for _ in range(8):
            for _ in range(chance.randrange(60)):
                await asyncio.sleep(0)
            sinks.append(Recorder())
            Subscription(through, tail, hand.id, sinks[-1]).open()
            if chance.random() < 0.4:
                proxy.cut()
        await publishing
        await wait_until(lambda: all(sink.finished for sink in sinks), "everybody has the end")
    assert [sink.story() for sink in sinks] == [whole()] * len(sinks)


async def test_any_cursor_goes_on_exactly_where_it_stands(bus: Bus, tail: Tail, owner: Owner) -> None:
    hand = await tasks.running(bus, owner)
    await publish(bus, owner, hand, upto=6)
    log = await tasks.entries(bus, SHARD.log(hand.id))
    for seen, (entry, _) in enumerate(log[:-1], 1):
        sink = Recorder()
        Subscription(bus, tail, hand.id, sink, after=Cursor(entry_id(entry), 1, seen)).open()
        await wait_until(lambda sink=sink: sink.finished, "the end is delivered")  # type: ignore[misc]
        assert sink.story() == whole(6)[seen:]


async def test_log_of_many_pages_is_read_whole(
    bus: Bus, tail: Tail, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 3)
    for upto in (8, 9, 10):
        hand = await tasks.running(bus, owner)
        await publish(bus, owner, hand, upto=upto)
        sink = Recorder()
        Subscription(bus, tail, hand.id, sink).open()
        await wait_until(lambda sink=sink: sink.finished, "the end is delivered")  # type: ignore[misc]
        assert sink.story() == whole(upto)


async def test_when_the_log_has_expired_the_end_comes_from_the_hash(bus: Bus, tail: Tail, owner: Owner) -> None:
    hand = await tasks.running(bus, owner)
    await publish(bus, owner, hand, upto=3)
    await bus.commands.call("DEL", SHARD.log(hand.id))
    sink = Recorder()
    subscription = Subscription(bus, tail, hand.id, sink)
    subscription.open()
    await wait_until(lambda: sink.finished, "the end is delivered")
    assert sink.story() == ["end"]
    assert subscription.phase is Phase.ENDED
    (record,) = sink.synced
    assert record is not None
    assert (record.state, record.last) == (State.COMPLETED, 3)


async def test_client_that_has_seen_the_end_gets_only_the_end_again(bus: Bus, tail: Tail, owner: Owner) -> None:
    hand = await tasks.running(bus, owner)
    await publish(bus, owner, hand, upto=3)
    *_, (last, _) = await tasks.entries(bus, SHARD.log(hand.id))
    sink = Recorder()
    Subscription(bus, tail, hand.id, sink, after=Cursor(entry_id(last), 1, 3)).open()
    await wait_until(lambda: sink.finished, "the end is delivered")
    assert sink.story() == ["end"]


async def test_unknown_task_is_told_and_the_subscription_ends(bus: Bus, tail: Tail) -> None:
    sink = Recorder()
    subscription = Subscription(bus, tail, tasks.new_id(), sink)
    subscription.open()
    await wait_until(lambda: subscription.phase is Phase.ENDED, "it has ended")
    assert (sink.synced, sink.events) == ([None], [])
    assert tail._tasks == {}


async def test_a_task_whose_end_was_discarded_is_gone_for_whoever_asks(bus: Bus, tail: Tail, owner: Owner) -> None:
    hand = await tasks.ended(bus, owner, chunks=3)
    assert await discard(bus, hand.id) == "discarded"
    sink = Recorder()
    subscription = Subscription(bus, tail, hand.id, sink)
    subscription.open()
    await wait_until(lambda: sink.synced, "the task is told")
    await wait_until(lambda: subscription.phase is not Phase.SYNCING, "it is over, or it waits")
    assert (subscription.phase, sink.synced, sink.events) == (Phase.ENDED, [None], [])
    assert tail._tasks == {}


@pytest.mark.keeps_keys
async def test_hash_that_is_not_ours_is_told_as_unknown(bus: Bus, tail: Tail) -> None:
    sink, id = Recorder(), tasks.new_id()
    await bus.commands.call("HSET", SHARD.task(id), "state", "confused", "spec", "{}")
    subscription = Subscription(bus, tail, id, sink)
    subscription.open()
    await wait_until(lambda: subscription.phase is Phase.ENDED, "it has ended")
    assert sink.synced == [None]


@pytest.mark.keeps_keys
async def test_log_entry_that_is_not_ours_does_not_hang_the_subscriber(bus: Bus, tail: Tail, owner: Owner) -> None:
    hand = await tasks.running(bus, owner)
    await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 1))
    await bus.commands.call("XADD", SHARD.log(hand.id), "*", "x", "y")
    sink = Recorder()
    subscription = Subscription(bus, tail, hand.id, sink)
    subscription.open()
    await wait_until(lambda: sink.live or subscription.phase is Phase.ENDED, "it goes on, or ends")


async def test_group_destroyed_under_it_is_refilled_without_repeats(bus: Bus, tail: Tail, owner: Owner) -> None:
    hand = await tasks.running(bus, owner)
    sink = Recorder()
    Subscription(bus, tail, hand.id, sink).open()
    await wait_until(lambda: sink.live, "it is live")
    for n in range(1, 4):
        await bus.commands.call("XGROUP", "DESTROY", SHARD.bus(0), reader_group("r1"))
        await tasks.emit_one(bus, owner, tasks.emission(hand, n, n))
        await wait_until(lambda n=n: sink.story()[-1:] == [str(n)], "the chunk is delivered")  # type: ignore[misc]
    await tasks.finish_one(bus, owner, tasks.ending(hand, 4, 3))
    await wait_until(lambda: sink.finished, "the end is delivered")
    assert sink.story() == whole(3)


async def test_bus_trimmed_under_it_is_refilled_from_the_log(bus: Bus, tail: Tail, owner: Owner) -> None:
    hand = await tasks.running(bus, owner)
    sink = Recorder()
    Subscription(bus, tail, hand.id, sink).open()
    await wait_until(lambda: sink.live, "it is live")
    await bus.commands.call("XGROUP", "DESTROY", SHARD.bus(0), reader_group("r1"))
    await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 1))
    await bus.commands.call("XTRIM", SHARD.bus(0), "MAXLEN", 0)
    await wait_until(lambda: sink.story() == ["1"], "the chunk comes from the log")
    await tasks.finish_one(bus, owner, tasks.ending(hand, 2, 1))
    await wait_until(lambda: sink.finished, "the end is delivered")
    assert sink.story() == whole(1)


async def test_gap_in_the_middle_of_catching_up_is_not_skipped(bus: Bus, owner: Owner) -> None:
    """Behind a gap nothing may be delivered before the log was read again: its entries would count as seen."""
    hand = await tasks.running(bus, owner)
    log = SHARD.log(hand.id)

    def add(n: int) -> None:
        bus.bulk.send("XADD", log, f"{n}-0", "e", tasks.chunks_event(n, n))
        bus.bulk.send("HSET", SHARD.task(hand.id), "last", n)

    add(1)
    sink = Recorder()
    subscription = Subscription(bus, Tail(bus, pool="smol", shard=0, partitions=1, replica="r1"), hand.id, sink)

    def lose_three_and_four() -> None:
        for n in range(2, 6):
            add(n)
        subscription.on_event(b"2-0", hand.id, decode_event(tasks.chunks_event(2, 2)))
        subscription.on_gap()
        subscription.on_event(b"5-0", hand.id, decode_event(tasks.chunks_event(5, 5)))

    sink.on_first_sync = lose_three_and_four
    subscription.open()
    await wait_until(lambda: sink.live, "it is live")
    assert sink.story() == ["1", "2", "3", "4", "5"]
    subscription.close()


async def test_more_live_events_than_the_buffer_holds_are_read_from_the_log(
    bus: Bus, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUFFER", 2)
    hand = await tasks.running(bus, owner)
    sink = Recorder()
    subscription = Subscription(bus, Tail(bus, pool="smol", shard=0, partitions=1, replica="r1"), hand.id, sink)

    def flood() -> None:
        for n in range(1, 6):
            bus.bulk.send("XADD", SHARD.log(hand.id), f"{n}-0", "e", tasks.chunks_event(n, n))
            bus.bulk.send("HSET", SHARD.task(hand.id), "last", n)
            subscription.on_event(b"%d-0" % n, hand.id, decode_event(tasks.chunks_event(n, n)))

    sink.on_first_sync = flood
    subscription.open()
    await wait_until(lambda: sink.live, "it is live")
    assert sink.story() == ["1", "2", "3", "4", "5"]
    subscription.close()


async def test_new_attempt_says_reset_between_the_outputs(bus: Bus, tail: Tail, owner: Owner) -> None:
    hand = await tasks.running(bus, owner)
    await tasks.emit_one(bus, owner, tasks.emission(hand, 1, 2))
    sinks = [Recorder(), Recorder()]
    Subscription(bus, tail, hand.id, sinks[0]).open()
    await wait_until(lambda: sinks[0].live, "the first is live")
    await bus.commands.call("ZADD", SHARD.leases, 1, hand.id)
    await reap(bus, SHARD, tasks.LIMITS)
    await dispatch(bus, SHARD, tasks.CONFIG)
    (again,) = await tasks.hands(bus, owner)
    await start(bus, owner, [again])
    assert await rebase(bus, owner, again, attempt=2, behind=0) == "ok"
    await publish(bus, owner, again, upto=2, attempt=2)
    Subscription(bus, tail, hand.id, sinks[1]).open()
    await wait_until(lambda: all(sink.finished for sink in sinks), "both have the end")
    assert [sink.story() for sink in sinks] == [["1", "2", "reset", "1", "2", "end"]] * 2


async def test_closed_subscription_delivers_nothing_more(bus: Bus, tail: Tail, owner: Owner) -> None:
    hand = await tasks.running(bus, owner)
    closed, syncing, other = Recorder(), Recorder(), Recorder()
    subscription = Subscription(bus, tail, hand.id, closed)
    subscription.open()
    await wait_until(lambda: closed.live, "it is live")
    subscription.close()
    interrupted = Subscription(bus, tail, hand.id, syncing)
    interrupted.open()
    interrupted.close()
    Subscription(bus, tail, hand.id, other).open()
    await publish(bus, owner, hand, upto=2)
    await wait_until(lambda: other.finished, "another one has the end")
    assert closed.story() == syncing.story() == []


async def test_ended_subscription_leaves_the_tail(bus: Bus, tail: Tail, owner: Owner) -> None:
    hand = await tasks.running(bus, owner)
    sink = Recorder()
    Subscription(bus, tail, hand.id, sink).open()
    await publish(bus, owner, hand, upto=2)
    await wait_until(lambda: sink.finished, "the end is delivered")
    assert tail._tasks == {}


async def test_a_gap_before_the_task_is_submitted_does_not_make_it_unknown(bus: Bus, tail: Tail) -> None:
    """Ingress listens, then submits; a reader that rejoined in between once answered 404 for a task that was accepted."""
    sink = Recorder()
    subscription = Subscription(bus, tail, tasks.item().id, sink)
    subscription.open_new()
    subscription.on_gap()
    await wait_until(lambda: sink.live, "live again")
    subscription.close()
    assert sink.synced == []


# -- when Redis has forgotten, or another attempt goes on


async def forget(bus: Bus, hand: Hand, *, after: int) -> None:
    """The newest entries of a task are lost, as in a failover."""
    log = await tasks.entries(bus, SHARD.log(hand.id))
    await bus.commands.call("XDEL", SHARD.log(hand.id), *[entry for entry, _ in log[after:]])
    await bus.commands.call("HSET", SHARD.task(hand.id), "last", after)


async def emitted(bus: Bus, owner: Owner, hand: Hand, first: int, last: int) -> None:
    for n in range(first, last + 1):
        assert await tasks.emit_one(bus, owner, tasks.emission(hand, n, n)) == "ok"


async def test_chunks_that_are_written_again_are_delivered_once(bus: Bus, tail: Tail, owner: Owner) -> None:
    hand = await tasks.running(bus, owner)
    sink = Recorder()
    Subscription(bus, tail, hand.id, sink).open()
    await emitted(bus, owner, hand, 1, 4)
    await wait_until(lambda: sink.story() == ["1", "2", "3", "4"], "four chunks are delivered")
    await forget(bus, hand, after=2)
    assert await tasks.emit_one(bus, owner, tasks.emission(hand, 3, 5)) == "ok"
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 6, 6)) == "ok"
    await wait_until(lambda: sink.finished, "the end is delivered")
    assert sink.story() == whole(6)


async def test_client_that_has_seen_more_than_redis_remembers_is_reset(bus: Bus, tail: Tail, owner: Owner) -> None:
    hand = await tasks.running(bus, owner)
    await emitted(bus, owner, hand, 1, 5)
    *_, (newest, _) = await tasks.entries(bus, SHARD.log(hand.id))
    await forget(bus, hand, after=3)
    sink = Recorder()
    Subscription(bus, tail, hand.id, sink, after=Cursor(entry_id(newest), 1, 5)).open()
    await wait_until(lambda: sink.live == 1, "the subscriber is live")
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 4, 4)) == "ok"
    await wait_until(lambda: sink.finished, "the end is delivered")
    assert sink.story() == ["reset", *whole(4)]


@pytest.mark.parametrize("seen", [0, 2, 3])
async def test_an_attempt_that_goes_on_is_one_text_for_every_reader(
    bus: Bus, tail: Tail, owner: Owner, seen: int
) -> None:
    hand = await tasks.running(bus, owner)
    await emitted(bus, owner, hand, 1, 3)
    log = await tasks.entries(bus, SHARD.log(hand.id))
    after = Cursor(entry_id(log[seen - 1][0]), 1, seen) if seen else Cursor()
    sink = Recorder()
    Subscription(bus, tail, hand.id, sink, after=after).open()
    assert await rebase(bus, owner, hand, attempt=2, behind=3) == "ok"
    await publish_rest(bus, owner, hand, first=4)
    await wait_until(lambda: sink.finished, "the end is delivered")
    assert sink.story() == whole(5)[seen:]


async def test_an_attempt_that_goes_on_behind_less_than_was_seen_is_a_reset(bus: Bus, tail: Tail, owner: Owner) -> None:
    hand = await tasks.running(bus, owner)
    sink = Recorder()
    Subscription(bus, tail, hand.id, sink).open()
    await emitted(bus, owner, hand, 1, 3)
    await wait_until(lambda: sink.story() == ["1", "2", "3"], "three chunks are delivered")
    await forget(bus, hand, after=2)
    assert await rebase(bus, owner, hand, attempt=2, behind=2) == "ok"
    await publish_rest(bus, owner, hand, first=3)
    await wait_until(lambda: sink.finished, "the end is delivered")
    assert sink.story() == ["1", "2", "3", "reset", *whole(5)]


async def publish_rest(bus: Bus, owner: Owner, hand: Hand, *, first: int) -> None:
    assert await tasks.emit_one(bus, owner, tasks.emission(hand, first, 4, attempt=2)) == "ok"
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 5, 5, attempt=2)) == "ok"


async def test_a_subscription_that_was_told_nothing_asks(
    bus: Bus, tail: Tail, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENT_S", 0.05)
    hand = await tasks.running(bus, owner)
    sink = Recorder()
    subscription = Subscription(bus, tail, hand.id, sink)
    subscription.open()
    await wait_until(lambda: sink.live == 1, "the subscriber is live")
    tail.unlisten(subscription, task=hand.id)
    await publish(bus, owner, hand, upto=3)
    await wait_until(lambda: sink.finished, "the end is found")
    assert sink.story() == whole(3)


async def test_a_new_task_that_redis_forgets_after_its_first_event_is_gone(
    bus: Bus, tail: Tail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENT_S", 0.05)
    task_id, sink = tasks.new_id(), Recorder()
    subscription = Subscription(bus, tail, task_id, sink)
    subscription.open_new()
    subscription.on_event(b"1-1", task_id, Started(attempt=1, worker="w1"))
    await wait_until(lambda: sink.synced == [None], "it is told that the task is gone")


async def test_a_task_that_redis_forgets_once_it_was_submitted_is_gone(
    bus: Bus, tail: Tail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENT_S", 0.05)
    sink = Recorder()
    subscription = Subscription(bus, tail, tasks.new_id(), sink)
    subscription.open_new()
    subscription.exists()
    await wait_until(lambda: sink.synced == [None], "it is told that the task is gone")


async def test_a_task_that_is_submitted_while_its_hash_is_read_is_not_taken_for_gone(
    bus: Bus, tail: Tail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hash said before the submission is heard behind the answer to it."""
    made, sink, send = tasks.item(), Recorder(), bus.bulk.send
    read, go_on = asyncio.Event(), asyncio.Event()

    async def late(*command: Arg) -> Reply:
        found = await send(*command)
        read.set()
        await go_on.wait()
        return found

    def sent(*command: Arg) -> asyncio.Future[Reply]:
        return asyncio.ensure_future(late(*command)) if command[0] == "HMGET" else send(*command)

    subscription = Subscription(bus, tail, made.id, sink)
    subscription.open_new()
    monkeypatch.setattr(bus.bulk, "send", sent)
    subscription.on_gap()
    await read.wait()
    await submit(bus, SHARD, tasks.CONFIG, [made])
    subscription.exists()
    go_on.set()
    await wait_until(lambda: sink.live or sink.synced, "it has caught up")
    assert (sink.synced, subscription.phase) == ([], Phase.LIVE)
    subscription.close()


async def test_an_end_that_comes_live_before_its_chunks_brings_them_from_the_log(
    bus: Bus, tail: Tail, owner: Owner
) -> None:
    hand = await tasks.running(bus, owner)
    sink = Recorder()
    subscription = Subscription(bus, tail, hand.id, sink)
    subscription.open()
    await wait_until(lambda: sink.live == 1, "the subscriber is live")
    tail.unlisten(subscription, task=hand.id)
    await emitted(bus, owner, hand, 1, 2)
    assert await tasks.finish_one(bus, owner, tasks.ending(hand, 3, 3)) == "ok"
    *_, (entry, end) = await tasks.entries(bus, SHARD.log(hand.id))
    subscription.on_event(entry, hand.id, decode_event(end[b"e"]))
    await wait_until(lambda: sink.finished, "the end is delivered")
    assert sink.story() == whole(3)
