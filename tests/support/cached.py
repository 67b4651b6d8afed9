"""Tasks that ask the same: submitted and taken in by the real scripts, as the scheduler does it."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Raw

from services.inference.scripts import Ending, Hand, Owner, Running, start
from services.scheduler.scripts import Arrival, Followed, admit, dispatch, follow
from shared.bus.client import Bus
from shared.bus.connection import Reply
from shared.errors import WrongKeyType
from shared.keys import SCHEDULER
from shared.lifecycle import State
from shared.messages import INLINE_RESULT_BYTES, NULL, Finished, decode_event, encode
from tests.support import tasks
from tests.support.redis import snapshot, spoil
from tests.support.tasks import LIMITS, SHARD

DIGEST, OTHER = "0" * 31 + "a", "0" * 31 + "b"
RESULT, USAGE = b'{"said":"yes"}', b'{"prompt_tokens":3,"completion_tokens":5,"prompt_tokens_details":null}'
FLIGHT, KEPT, FOLLOWERS = SHARD.flight(DIGEST), SHARD.kept_answer(DIGEST), SHARD.followers(DIGEST)


async def asked(bus: Bus, *, digest: str = DIGEST, wish: str = "use", ttl_ms: int = 60_000, **more: Any) -> str:
    """A task that no scheduler has seen. `more`: as for tasks.item."""
    return await tasks.submitted(bus, cache=f"{digest} {ttl_ms} {wish}", **more)


async def entries_in(bus: Bus) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """What the scheduler's group is given next from `in`."""
    if not await tasks.groups(bus, SHARD.arrivals):
        await bus.commands.call("XGROUP", "CREATE", SHARD.arrivals, SCHEDULER, "0", "MKSTREAM")
    reply = await bus.commands.call("XREADGROUP", "GROUP", SCHEDULER, "s", "STREAMS", SHARD.arrivals, ">")
    return [(entry, dict(zip(f[::2], f[1::2], strict=True))) for entry, f in (reply or [[0, []]])[0][1]]


async def arrive(bus: Bus) -> list[str]:
    """All that is in `in`, taken in as the scheduler does: first the ends that others wait for, then the tasks."""
    verdicts: list[str] = []
    while page := await entries_in(bus):
        for _, fields in page:
            while b"lead" in fields and (await follow_on(bus, fields)).more:
                pass
        arrivals = [Arrival(fields.get(b"t", b"").decode(), entry) for entry, fields in page]
        said = await admit(bus, SHARD, LIMITS, arrivals)
        verdicts += [verdict for verdict in said if verdict != "wake"]
    return verdicts


async def follow_on(bus: Bus, fields: dict[bytes, bytes]) -> Followed:
    return await follow(bus, SHARD, LIMITS, fields[b"lead"].decode(), fields[b"of"].decode())


async def lead_entries(bus: Bus) -> list[tuple[str, str]]:
    """Ends in `in` that others wait for: digest, task."""
    found = [fields for _, fields in await tasks.entries(bus, SHARD.arrivals)]
    return [(fields[b"lead"].decode(), fields[b"of"].decode()) for fields in found if b"lead" in fields]


async def take_in(bus: Bus, *, expect: str, **how: Any) -> str:
    """A task that was admitted with this verdict. `how`: as for `asked`."""
    id = await asked(bus, **how)
    verdicts = await arrive(bus)
    assert verdicts == [expect], verdicts
    return id


async def run(bus: Bus, owner: Owner, id: str) -> Hand:
    """The worker runs the task: it is the only one that is handed out."""
    await dispatch(bus, SHARD, tasks.CONFIG)
    (hand,) = await tasks.hands(bus, owner)
    assert hand.id == id
    await begin(bus, owner, hand)
    return hand


async def begin(bus: Bus, owner: Owner, hand: Hand) -> None:
    (verdict,) = await start(bus, owner, [hand])
    assert isinstance(verdict, Running)


async def complete(
    bus: Bus, owner: Owner, id: str, *, result: bytes = RESULT, chunks: int = 0, content_type: str = ""
) -> None:
    """The worker runs the task to its end; with chunks it was streamed."""
    await end(bus, owner, await run(bus, owner, id), result=result, chunks=chunks, content_type=content_type)


async def end(
    bus: Bus,
    owner: Owner,
    hand: Hand,
    *,
    result: bytes = RESULT,
    chunks: int = 0,
    state: State = State.COMPLETED,
    content_type: str = "",
) -> None:
    finished = Finished(
        attempt=1,
        last=chunks,
        state=state,
        status=200 if state is State.COMPLETED else 500,
        streamed=chunks > 0,
        content_type=content_type,
        result=NULL if chunks or content_type or len(result) > INLINE_RESULT_BYTES else Raw(result),
        finish_reason="stop",
        usage=Raw(USAGE),
    )
    ending = Ending(
        id=hand.id,
        epoch=hand.epoch,
        entry=hand.entry,
        first=1,
        last=chunks,
        chunks=tasks.chunks_event(1, chunks) if chunks else b"",
        journal=b"",
        tokens=8,
        state=state,
        status=finished.status,
        result=result,
        finished=encode(finished),
    )
    assert await tasks.finish_one(bus, owner, ending) == "ok"


async def end_of(bus: Bus, id: str) -> Finished:
    event = decode_event((await tasks.fields(bus, id))["finished"].encode())
    assert isinstance(event, Finished)
    return event


async def followers(bus: Bus) -> list[str]:
    return [id.decode() for id in await bus.commands.call("ZRANGE", FOLLOWERS, 0, -1)]


async def leader(bus: Bus) -> str:
    found = await bus.commands.call("GET", FLIGHT)
    return (found or b"").decode()


async def states(bus: Bus, ids: list[str]) -> list[str]:
    return [(await tasks.fields(bus, id))["state"] for id in ids]


async def assert_refused_by(bus: Bus, key: str, call: Callable[[], Awaitable[Reply]]) -> None:
    """As assert_refused_whole, but what the key holds is no string: some keys of a flight are."""
    await spoil(bus, key, command="RPUSH")
    before = await snapshot(bus)
    with contextlib.suppress(WrongKeyType):
        assert await call() == [f"wrongtype {key}"]
    assert await snapshot(bus) == before
