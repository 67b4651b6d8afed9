"""The rules of one WebSocket: greeting, deadlines, refusals, and what a careless or silent client gets."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import websockets
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.types import Message
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from services.notifier.feed import Feed
from services.notifier.line import SELDOM, Line
from services.notifier.settings import Settings
from services.notifier.socket import Sockets
from shared.bus.client import Bus
from shared.bus.tail import Tail, Tails
from shared.cancel import Canceller
from shared.lifecycle import Lane, State
from shared.lifespan import HttpServer
from shared.messages import Finished
from shared.origins import origin_pattern
from shared.place import Outlooks
from tests.support import tasks
from tests.support.redis import Proxy
from tests.support.tails import tailing
from tests.support.waiting import wait_until
from tests.support.websocket import PushClient

HELLO = {"t": "hello", "v": 1}


def door(bus: Bus, tail: Tail, *, canceller: Canceller | None = None, **settings: Any) -> Sockets:
    chosen = Settings(**settings)
    orders = canceller or Canceller(bus, tasks.CONFIG)
    line = Line(Outlooks(bus, tasks.LIMITS))
    return Sockets(bus, Tails([tail]), line, orders, chosen, origin_pattern(chosen.origins))


@contextlib.asynccontextmanager
async def serving(
    bus: Bus, *, canceller: Canceller | None = None, **settings: Any
) -> AsyncIterator[tuple[str, Sockets]]:
    """A notifier's WebSocket door, in this process."""
    async with tailing(bus) as tail:
        sockets = door(bus, tail, canceller=canceller, **settings)
        http = HttpServer(Starlette(routes=[WebSocketRoute("/v1/ws", sockets)]), "127.0.0.1", 0, websockets=True)
        await http.start()
        yield f"ws{http.url.removeprefix('http')}/v1/ws", sockets
        await http.stop()


@contextlib.asynccontextmanager
async def client(url: str, *first: Any, **headers: str) -> AsyncIterator[ClientConnection]:
    protocol = Subprotocol("headrace.v1")
    async with websockets.connect(url, subprotocols=[protocol], additional_headers=headers) as socket:
        if first:
            await socket.send(json.dumps(first))
        yield socket


async def messages(socket: ClientConnection) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(await socket.recv())
    return found


async def bye_of(socket: ClientConnection) -> tuple[int, bool]:
    """What the server said before it closed; the close code says the same."""
    last: dict[str, Any] = {}
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            last = (await messages(socket))[-1]
    assert last["t"] == "bye"
    assert socket.close_code == last["code"]
    return last["code"], last["reconnect"]


async def test_a_greeted_client_is_welcomed_in_the_protocol_it_asked_for(bus: Bus) -> None:
    async with serving(bus) as (url, _), client(url, HELLO) as socket:
        [welcome] = await messages(socket)
        assert (welcome["t"], welcome["v"], socket.subprotocol) == ("welcome", 1, "headrace.v1")


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ({"t": "sub", "id": 1, "task": "x"}, 4505),
        ({"t": "hello", "v": 9}, 4504),
    ],
    ids=["no hello", "another version"],
)
async def test_a_client_that_greets_wrongly_is_told_to_stop(bus: Bus, first: dict[str, Any], code: int) -> None:
    async with serving(bus) as (url, _), client(url, first) as socket:
        assert await bye_of(socket) == (code, False)


@pytest.mark.parametrize("data", ["{oops", '{"t":"hello"}', b"\x00\x01", "[" * 5000, "x" * 20_000])
async def test_what_is_not_a_frame_ends_the_connection(bus: Bus, data: str | bytes) -> None:
    async with serving(bus) as (url, _), client(url, HELLO) as socket:
        await socket.send(data)
        assert await bye_of(socket) == (4500, False)


async def test_a_client_that_never_greets_is_let_go(bus: Bus) -> None:
    async with serving(bus, hello_s=0.05) as (url, _), client(url) as socket:
        assert await bye_of(socket) == (4505, False)


async def test_silence_is_broken_by_pings_and_a_client_that_answers_stays(bus: Bus) -> None:
    async with serving(bus, heartbeat_s=1, hello_s=1) as (url, _), client(url, HELLO) as socket:
        await messages(socket)
        for _ in range(3):
            [ping] = await messages(socket)
            assert ping["t"] == "ping"
            await socket.send(json.dumps([{"t": "pong", "ts": ping["ts"]}]))


async def test_the_client_that_other_tests_use_answers_pings() -> None:
    class Server:
        def __init__(self) -> None:
            self.heard: list[Any] = []

        async def recv(self) -> str:
            return json.dumps([{"t": "ping", "ts": 7}])

        async def send(self, frame: str) -> None:
            self.heard += json.loads(frame)

    page, server = PushClient("unused"), Server()
    page._socket = server  # type: ignore[assignment]
    await page.receive()
    assert server.heard == [{"t": "pong", "ts": 7}]


async def test_a_client_that_answers_no_ping_is_let_go_and_may_come_back(bus: Bus) -> None:
    async with serving(bus, heartbeat_s=0.1, hello_s=1) as (url, _), client(url, HELLO) as socket:
        assert await bye_of(socket) == (4003, True)


async def test_a_draining_replica_sends_its_clients_away(bus: Bus) -> None:
    async with serving(bus) as (url, sockets), client(url, HELLO) as socket:
        await messages(socket)
        sockets.drain(1000)
        assert await bye_of(socket) == (4001, True)


async def test_a_client_that_comes_while_the_replica_drains_is_sent_away_too(bus: Bus) -> None:
    async with serving(bus) as (url, sockets):
        sockets.drain(1000)
        async with client(url, HELLO) as socket:
            assert await bye_of(socket) == (4001, True)


async def test_unknown_messages_and_fields_are_ignored(bus: Bus) -> None:
    async with serving(bus) as (url, _):
        async with client(url, {**HELLO, "more": 1}, {"t": "later"}, {"t": "ping", "ts": 7}) as socket:
            assert [message["t"] for message in await messages(socket)] == ["welcome", "pong"]


SUBS: list[tuple[dict[str, Any], str, str]] = [
    ({"id": 1, "task": "nonsense"}, "not_found", "not the id"),
    ({"id": 1}, "bad_request", "either"),
    ({"id": 1, "task": "x", "session": "y"}, "bad_request", "either"),
    ({"id": 1, "session": "a b"}, "bad_request", "session"),
    ({"id": 1, "session": "s", "after": "yesterday"}, "bad_request", "after"),
    ({"id": 1, "session": "s", "form": "poem"}, "bad_request", "form"),
    ({"id": "one", "session": "s"}, "bad_request", "int"),
]


@pytest.mark.parametrize(("sub", "code", "word"), SUBS)
async def test_a_faulty_subscription_is_refused_and_the_connection_goes_on(
    bus: Bus, sub: dict[str, Any], code: str, word: str
) -> None:
    async with serving(bus) as (url, _), client(url, HELLO, {"t": "sub", **sub}, {"t": "ping"}) as socket:
        _, refused, pong = await messages(socket)
        assert (refused["t"], refused["code"], pong["t"]) == ("err", code, "pong")
        assert word in refused["msg"]


async def test_a_client_that_goes_on_sending_nonsense_is_let_go(bus: Bus) -> None:
    async with serving(bus) as (url, _), client(url, HELLO, *[{"t": "sub"}] * 30) as socket:
        assert await bye_of(socket) == (4500, False)


async def test_a_cursor_of_another_make_is_refused(bus: Bus) -> None:
    task = await tasks.submitted(bus)
    async with serving(bus) as (url, _):
        async with client(url, HELLO, {"t": "sub", "id": 1, "task": task, "after": "zzz"}) as socket:
            assert (await messages(socket))[-1]["code"] == "bad_request"


async def test_an_unsubscribed_task_is_not_told_of_any_more(bus: Bus) -> None:
    task = await tasks.submitted(bus, session="s")
    subs = ({"t": "sub", "id": 1, "task": task}, {"t": "unsub", "id": 1}, {"t": "sub", "id": 1, "task": task})
    async with serving(bus) as (url, _), client(url, HELLO, *subs) as socket:
        told = [message["t"] for message in await messages(socket)]
        while "live" not in told:
            told += [message["t"] for message in await messages(socket)]
        assert told.count("sync") == 1


async def test_a_task_that_its_session_list_has_forgotten_is_told_to_whoever_names_it(bus: Bus) -> None:
    """The list expires some time after the newest submission, which may be before an older task has ended."""
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner, session="s")
    gone = tasks.new_id()
    await tasks.finish_one(bus, owner, tasks.ending(hand, 1, 1))
    await bus.commands.call("DEL", tasks.SHARD.session("s"))
    sub = {"t": "sub", "id": 1, "session": "s", "after": {hand.id: "0", gone: "0"}}
    async with serving(bus) as (url, _), client(url, HELLO, sub) as socket:
        assert (await until(socket, "done"))["task"] == hand.id


async def test_a_session_that_names_what_is_no_task_is_refused(bus: Bus) -> None:
    sub = {"t": "sub", "id": 1, "session": "s", "after": {"x": "0"}}
    async with serving(bus) as (url, _), client(url, HELLO, sub) as socket:
        assert (await messages(socket))[-1]["code"] == "not_found"


# -- the place in line of what waits


async def test_whoever_follows_a_waiting_task_is_told_its_place_and_why_it_waits(bus: Bus) -> None:
    ids = [await tasks.admitted(bus, lane=lane) for lane in Lane]
    async with serving(bus) as (url, _), client(url, HELLO, {"t": "sub", "id": 1, "task": ids[2]}) as socket:
        told = await until(socket, "st")
    assert (told["status"], told["info"]) == ("pending", {"pos": 3, "why": "no_worker"})


async def test_a_place_is_told_again_when_it_has_changed_and_not_before(bus: Bus) -> None:
    ids = [await tasks.admitted(bus, lane=lane) for lane in Lane]
    async with serving(bus) as (url, sockets), client(url, HELLO, {"t": "sub", "id": 1, "task": ids[2]}) as socket:
        assert (await until(socket, "st"))["info"]["pos"] == 3
        await sockets.line.refresh()
        await sockets.canceller.cancel(ids[0])
        await sockets.line.refresh()
        assert (await until(socket, "st"))["info"]["pos"] == 2


async def test_the_tasks_of_a_session_are_told_their_places_from_their_first_moment(bus: Bus) -> None:
    async with serving(bus) as (url, _), client(url, HELLO, {"t": "sub", "id": 1, "session": "s"}) as socket:
        await messages(socket)
        ids = [await tasks.submitted(bus, session="s") for _ in range(2)]
        places: dict[str, int] = {}
        while len(places) < 2:
            for message in await messages(socket):
                if message["t"] == "st" and "pos" in message["info"]:
                    places[message["task"]] = message["info"]["pos"]
    assert set(places) == set(ids)


async def test_a_task_that_runs_is_told_no_place_until_it_waits_again(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    hand = await tasks.running(bus, owner)
    async with serving(bus) as (url, sockets), client(url, HELLO, {"t": "sub", "id": 1, "task": hand.id}) as socket:
        await until(socket, "live")
        await bus.commands.call("HSET", tasks.SHARD.task(hand.id), "state", "pending")
        await bus.commands.call("ZADD", tasks.SHARD.later, 1, hand.id)
        for _ in range(SELDOM):
            await sockets.line.refresh()
        told = await until(socket, "st")
    assert (told["status"], told["info"]["why"]) == ("pending", "later")


# -- cancel


async def test_a_cancelled_task_ends_for_everyone_who_follows_it(bus: Bus) -> None:
    task = await tasks.admitted(bus)
    sub = {"t": "sub", "id": 1, "task": task}
    async with serving(bus) as (url, _), client(url, HELLO, sub) as follower, client(url, HELLO) as other:
        await until(follower, "live")
        await other.send(json.dumps([{"t": "cancel", "task": task}]))
        end = await until(follower, "fail")
    assert (end["status"], end["error"]["code"]) == ("cancelled", "task_cancelled")


async def test_a_running_task_is_told_to_stop(bus: Bus) -> None:
    hand = await tasks.running(bus, await tasks.worker(bus))
    async with serving(bus) as (url, _), client(url, HELLO, {"t": "cancel", "task": hand.id}):
        await wait_until(partial(has, bus, hand.id, "stop", "cancelled"), "the task is told to stop")


async def test_a_page_that_cancels_and_goes_at_once_is_obeyed(bus: Bus) -> None:
    ids = [await tasks.admitted(bus) for _ in range(20)]
    async with serving(bus) as (url, _):
        async with client(url, HELLO, *[{"t": "cancel", "task": task} for task in ids]):
            pass
        for task in ids:
            await wait_until(partial(has, bus, task, "state", "cancelled"), "the task is cancelled")


async def test_to_go_or_to_unsubscribe_cancels_nothing(bus: Bus) -> None:
    task = await tasks.admitted(bus)
    subs = ({"t": "sub", "id": 1, "task": task}, {"t": "unsub", "id": 1}, {"t": "sub", "id": 1, "task": task})
    async with serving(bus) as (url, _):
        async with client(url, HELLO, *subs) as socket:
            await until(socket, "live")
    assert (await tasks.fields(bus, task))["state"] == "pending"


async def test_what_cannot_be_cancelled_is_told_with_its_name_and_the_connection_goes_on(bus: Bus) -> None:
    faulty = ({"t": "cancel", "task": "nonsense"}, {"t": "cancel", "task": f"other.0.0.0.{'0' * 26}"}, {"t": "cancel"})
    async with serving(bus) as (url, _), client(url, HELLO, *faulty, {"t": "ping"}) as socket:
        _, *refused, pong = await messages(socket)
        assert [(error["t"], error["code"]) for error in refused[:2]] == [("err", "not_found")] * 2
        assert [error["task"] for error in refused[:2]] == ["nonsense", f"other.0.0.0.{'0' * 26}"]
        assert (refused[2]["code"], pong["t"]) == ("bad_request", "pong")


async def test_a_task_whose_key_is_not_ours_cannot_be_cancelled_and_that_is_told(bus: Bus) -> None:
    task = tasks.new_id()
    await bus.commands.call("SET", tasks.SHARD.task(task), "not ours")
    async with serving(bus) as (url, _), client(url, HELLO, {"t": "cancel", "task": task}) as socket:
        error = await until(socket, "err")
    assert (error["code"], error["task"]) == ("unavailable", task)


async def test_cancels_are_bounded_while_redis_is_slow(bus: Bus, redis_url: str) -> None:
    """They wait in the notifier's memory, so one connection may not have any number of them."""
    async with Proxy(redis_url) as proxy, Bus(proxy.url, name="slow") as slow:
        await slow.commands.call("PING")
        async with serving(bus, canceller=Canceller(slow, tasks.CONFIG)) as (url, _), client(url, HELLO) as socket:
            proxy.stall()
            await messages(socket)
            for _ in range(2):
                await socket.send(json.dumps([{"t": "cancel", "task": tasks.new_id()} for _ in range(100)]))
            error = await until(socket, "err")
            assert error["code"] == "busy"
            proxy.flow()


async def until(socket: ClientConnection, kind: str) -> dict[str, Any]:
    while True:
        for message in await messages(socket):
            if message["t"] == kind:
                return message


async def has(bus: Bus, task: str, field: str, value: str) -> bool:
    return (await tasks.fields(bus, task)).get(field) == value


async def test_a_page_of_another_origin_is_refused_before_it_is_heard(bus: Bus) -> None:
    async with serving(bus, origins="https://shop.example") as (url, _):
        for allowed in ("https://shop.example", "http://localhost:3000"):
            async with client(url, HELLO, Origin=allowed) as socket:
                assert (await messages(socket))[0]["t"] == "welcome"
        with pytest.raises(websockets.InvalidStatus, match="403"):
            async with client(url, HELLO, Origin="https://evil.example"):
                pass


# -- what comes together, in one turn of the event loop


class Wire:
    """A connection without a network: each turn is the test's."""

    def __init__(self, sockets: Sockets) -> None:
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.say({"type": "websocket.connect"})
        scope = {"type": "websocket", "headers": [], "subprotocols": []}
        self.running = asyncio.create_task(sockets(scope, self._inbox.get, self._send))

    async def _send(self, message: Any) -> None:
        if message["type"] == "websocket.send":
            self.sent += json.loads(message["text"])

    def say(self, message: Message) -> None:
        self._inbox.put_nowait(message)

    def send(self, *messages: Any) -> None:
        self.say({"type": "websocket.receive", "text": json.dumps(messages)})

    def leave(self) -> None:
        self.say({"type": "websocket.disconnect", "code": 1001})

    def told(self, kind: str, id: int = 1) -> list[dict[str, Any]]:
        return [message for message in self.sent if message["t"] == kind and message["id"] == id]


async def followed(sockets: Sockets, task: str) -> tuple[Wire, Feed]:
    """A client that is told of a task, as subscription 1."""
    wire = Wire(sockets)
    wire.send(HELLO, {"t": "sub", "id": 1, "task": task})
    await wait_until(lambda: wire.told("live"), "it is told")
    (socket,) = sockets._open
    feed = socket._followed[1]
    assert isinstance(feed, Feed)
    return wire, feed


def end(feed: Feed) -> None:
    feed.on_event((1, 1), Finished(attempt=1, last=0, state=State.CANCELLED, status=499))


async def test_a_number_that_is_given_again_in_the_moment_of_an_end_stays_with_its_new_owner(bus: Bus) -> None:
    old, new = await tasks.admitted(bus), await tasks.admitted(bus)
    async with tailing(bus) as tail:
        wire, feed = await followed(door(bus, tail), old)
        wire.send({"t": "unsub", "id": 1}, {"t": "sub", "id": 1, "task": new})
        end(feed)
        await wait_until(lambda: len(wire.told("live")) == 2, "the new one is told")
        await Canceller(bus, tasks.CONFIG).cancel(new)
        await wait_until(lambda: len(wire.told("fail")) == 2, "its end is told")
        wire.leave()
        await wire.running


@pytest.mark.parametrize("turns", range(8))
async def test_a_client_that_leaves_in_the_moment_of_an_end_is_counted_out_once(bus: Bus, turns: int) -> None:
    def counted() -> float | None:
        return REGISTRY.get_sample_value("hr_push_subscriptions")

    before = counted()
    async with tailing(bus) as tail:
        wire, feed = await followed(door(bus, tail), await tasks.admitted(bus))
        wire.leave()
        for _ in range(turns):
            await asyncio.sleep(0)
        end(feed)
        await wire.running
    assert counted() == before
