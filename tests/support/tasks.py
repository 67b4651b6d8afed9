"""Tasks in any state, made by the real scripts in their real order."""

from typing import Any

from msgspec import Raw

from services.inference.scripts import Emission, Ending, Hand, Owner, Running, Slots, beat, emit, finish, start
from services.scheduler.scripts import Arrival, admit, dispatch
from shared.bus.client import Bus
from shared.bus.connection import Reply
from shared.config import Config, Limits, Pool
from shared.ids import Place, new_nonce, new_task_id
from shared.keys import SCHEDULER, WORKERS, shard_keys
from shared.lifecycle import Lane, State
from shared.messages import Chunks, Finished, Pending, Task, encode
from shared.submit import SubmitItem, submit

MODEL = "echo-1"
CONFIG = Config(pools={"smol": Pool(model=MODEL, engine="echo")})
PLACE = Place("smol", 0, 0, 0)
SHARD = shard_keys("smol", 0)
ORDER = (*SHARD.turns, *SHARD.rested, SHARD.waiting, SHARD.fair, SHARD.means, SHARD.held)
"""Keys of the waiting order that a shard has once."""
BACKLOGS = tuple(SHARD.backlog(lane, "default") for lane in Lane)
BODY = b'{"model":"echo-1","messages":[]}'
LIMITS = Limits(results_kept_s=600, log_kept_s=60)


def config(backlog: int = 100) -> Config:
    return Config(pools=CONFIG.pools, limits=Limits(backlog=backlog))


def new_id() -> str:
    return new_task_id(PLACE)


def item(
    id: str = "",
    *,
    lane: Lane = Lane.NORMAL,
    session: str = "",
    reply_to: str = "",
    body: bytes = BODY,
    attached: bool = False,
    expires_in_s: float = 600,
    tenant: str = "default",
    **more: Any,
) -> SubmitItem:
    """`more`: further fields of SubmitItem, as they are."""
    task = Task(route="/v1/chat/completions", model=MODEL, tenant=tenant, lane=lane, session=session, reply_to=reply_to)
    fields: dict[str, Any] = {
        "hurried": "", "starts_in_ms": 0, "tokens_in": 10, "tokens_out": 0, "queued_limit": 0, "batch_limit": 0,
        "metered": "", "owes": "", "tells": "", "cache": "", "prefix": "",
    }  # fmt: skip
    return SubmitItem(
        id=id or new_id(),
        lane=lane,
        tenant=tenant,
        session=session,
        reply_to=reply_to,
        attached="1" if attached else "",
        expires_in_ms=int(expires_in_s * 1000),
        spec=encode(task),
        body=body,
        pending=encode(Pending(model=MODEL, lane=lane)),
        **fields | more,
    )


async def submitted(bus: Bus, **asked: Any) -> str:
    """A pending task that no scheduler has seen. `asked`: as for `item`."""
    made = item(**asked)
    assert await submit(bus, SHARD, CONFIG, [made]) == ["new"]
    return made.id


async def admitted(bus: Bus, **asked: Any) -> str:
    """A task that waits in its backlog; `in` is empty. `asked`: as for `item`."""
    id = await submitted(bus, **asked)
    assert "queued" in await admit_all(bus)
    return id


async def arrivals(bus: Bus) -> list[Arrival]:
    """What the scheduler's group is given next from `in`."""
    if b"scheduler" not in [group[1] for group in await groups(bus, SHARD.arrivals)]:
        await bus.commands.call("XGROUP", "CREATE", SHARD.arrivals, SCHEDULER, "0", "MKSTREAM")
    reply = await bus.commands.call("XREADGROUP", "GROUP", SCHEDULER, "s", "STREAMS", SHARD.arrivals, ">")
    return [
        Arrival(fields[1].decode() if fields[0] == b"t" else "", entry) for entry, fields in (reply or [[0, []]])[0][1]
    ]


async def groups(bus: Bus, stream: str) -> Reply:
    exists = await bus.commands.call("EXISTS", stream)
    return await bus.commands.call("XINFO", "GROUPS", stream) if exists else []


async def admit_all(bus: Bus) -> list[str]:
    return await admit(bus, SHARD, LIMITS, await arrivals(bus))


def room(slots: int) -> Slots:
    """All of it for any lane."""
    return Slots(slots, slots, slots)


async def worker(bus: Bus, name: str = "w1", *, slots: int = 4) -> Owner:
    """A live worker with announced slots."""
    owner = Owner(SHARD, name, new_nonce(), LIMITS)
    assert await beat(bus, owner, room(slots), b"{}", []) == {}
    return owner


async def hands(bus: Bus, owner: Owner) -> list[Hand]:
    """What the worker is given next from its stream."""
    stream = SHARD.work(owner.worker)
    reply = await bus.commands.call("XREADGROUP", "GROUP", WORKERS, owner.worker, "STREAMS", stream, ">")
    return [Hand(fields[1].decode(), int(fields[3]), entry) for entry, fields in (reply or [[0, []]])[0][1]]


async def handed(bus: Bus, owner: Owner, *, session: str = "", reply_to: str = "") -> Hand:
    """A task that the worker was given and has not started."""
    id = await admitted(bus, session=session, reply_to=reply_to)
    assert (await dispatch(bus, SHARD, CONFIG)).handed_out == 1
    (hand,) = await hands(bus, owner)
    assert hand.id == id
    return hand


async def running(bus: Bus, owner: Owner, *, session: str = "", reply_to: str = "") -> Hand:
    """A task that the worker runs, without output."""
    hand = await handed(bus, owner, session=session, reply_to=reply_to)
    (verdict,) = await start(bus, owner, [hand])
    assert isinstance(verdict, Running)
    return hand


async def ended(bus: Bus, owner: Owner, *, chunks: int = 0, session: str = "") -> Hand:
    hand = await running(bus, owner, session=session)
    assert await finish_one(bus, owner, ending(hand, 1, chunks)) == "ok"
    return hand


def chunks_event(first: int, last: int, attempt: int = 1) -> bytes:
    frames = [Raw(b'{"n":%d}' % n) for n in range(first, last + 1)]
    return encode(Chunks(attempt=attempt, first=first, last=last, chunks=frames))


def finished_event(last: int, attempt: int = 1, state: State = State.COMPLETED) -> bytes:
    return encode(Finished(attempt=attempt, last=last, state=state, status=200, result=Raw(b'{"said":"yes"}')))


def emission(hand: Hand, first: int, last: int, *, attempt: int = 1, journal: bytes = b"") -> Emission:
    return Emission(hand.id, hand.epoch, first, last, chunks_event(first, last, attempt), journal)


def ending(
    hand: Hand,
    first: int,
    last: int,
    *,
    attempt: int = 1,
    journal: bytes = b"",
    state: State = State.COMPLETED,
    tokens: int = 20,
) -> Ending:
    """The end with a tail `first`..`last`; an empty tail if first is above last."""
    tail = chunks_event(first, last, attempt) if first <= last else b""
    return Ending(
        id=hand.id,
        epoch=hand.epoch,
        entry=hand.entry,
        first=first,
        last=last,
        chunks=tail,
        journal=journal,
        tokens=tokens,
        state=state,
        status=200,
        result=b'{"said":"yes"}',
        finished=finished_event(last, attempt, state),
    )


async def emit_one(bus: Bus, owner: Owner, one: Emission) -> str:
    (verdict,) = await emit(bus, owner, [one])
    return verdict


async def finish_one(bus: Bus, owner: Owner, one: Ending) -> str:
    (verdict,) = await finish(bus, owner, [one])
    return verdict


async def fields(bus: Bus, id: str) -> dict[str, str]:
    """The hash of a task."""
    flat = await bus.commands.call("HGETALL", SHARD.task(id))
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}


async def entries(bus: Bus, stream: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    found = await bus.commands.call("XRANGE", stream, "-", "+")
    return [(entry, dict(zip(values[::2], values[1::2], strict=True))) for entry, values in found]


async def wakes(bus: Bus) -> list[bytes]:
    """The reasons of the wake-ups that wait in `in`."""
    return [values[b"wake"] for _, values in await entries(bus, SHARD.arrivals) if b"wake" in values]


async def ttl_ms(bus: Bus, key: str) -> int:
    return int(await bus.commands.call("PTTL", key))
