"""Bodies that are too large for Redis: put before their task is made, named by it, and gone if it is refused."""

import asyncio
from pathlib import Path

import obstore
import pytest

from services.scheduler.object_sweep import ObjectSweep
from shared import keys
from shared import large as large_bodies
from shared.bus.client import Bus
from shared.clock import now_ms
from shared.config import Config, Limits, Pool
from shared.errors import BacklogFull, IdempotencyConflict, NoObjectStore, StoreUnavailable
from shared.keys import keys_of
from shared.large import LOOK_MS, Large, object_key, task_of
from shared.messages import Stored, Task, decode_task
from shared.objects import Objects
from shared.payer import ANONYMOUS
from shared.policy import Alias, Live, Policy, Shadow, Target, Tenant
from shared.quota import Quotas
from shared.request import CHAT, Request, from_openai
from shared.submit import Submitter
from shared.wishes import Wishes
from tests.shared.test_files import stored
from tests.support import tasks
from tests.support.waiting import wait_until

INLINE = 1024
LIMITS = Limits(inline_bytes=INLINE)
CONFIG = Config(pools=tasks.CONFIG.pools, limits=LIMITS)


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects((tmp_path / "objects").as_uri())


def asked(size: int = 2 * INLINE, *, config: Config = CONFIG, task_id: str = "") -> Request:
    body = b'{"model":"%b","temperature":0,"messages":[],"x":"%b"}' % (tasks.MODEL.encode(), b"a" * size)
    return from_openai(config, ANONYMOUS, CHAT, body, task_id=task_id)


async def submitted(submitter: Submitter, request: Request) -> str:
    return (await submitter.submit(request, submitter.new_id(request))).id


async def kept(bus: Bus, task_id: str) -> tuple[Task, bytes]:
    spec, body = await bus.commands.call("HMGET", keys_of(task_id)[0].task(task_id), "spec", "body")
    return decode_task(spec), body or b""


async def test_a_large_body_lies_in_the_store_and_its_task_names_it(bus: Bus, objects: Objects) -> None:
    request = asked()
    task_id = await submitted(Submitter(bus, CONFIG, objects), request)
    task, body = await kept(bus, task_id)
    assert task.stored is not None
    assert (task.stored.bytes, body) == (len(request.body), b"")
    assert await Large(bus, objects, INLINE).get(task_id, task.stored) == request.body
    key = object_key(task_id, task.stored)
    assert (await stored(objects), task_of(key)) == ([key], task_id)
    assert 0 < float(await bus.commands.call("ZSCORE", keys.OBJECTS, key)) - now_ms() <= LOOK_MS


async def test_a_small_body_goes_through_redis_and_without_a_store_every_one(bus: Bus, objects: Objects) -> None:
    for store, request in ((objects, asked(10)), (None, asked())):
        task, body = await kept(bus, await submitted(Submitter(bus, CONFIG, store), request))
        assert (task.stored, body) == (None, request.body)
    assert await stored(objects) == []
    assert await bus.commands.call("EXISTS", keys.OBJECTS) == 0
    with pytest.raises(NoObjectStore):
        await Large(bus, None, INLINE).get(tasks.new_id(), Stored(name="x", bytes=1))


async def test_a_repeat_with_the_same_key_stores_nothing_and_another_body_is_a_conflict(
    bus: Bus, objects: Objects
) -> None:
    submitter, request = Submitter(bus, CONFIG, objects), asked(task_id="order-1")
    first = await submitted(submitter, request)
    before = await stored(objects)
    assert await submitted(submitter, request) == first
    with pytest.raises(IdempotencyConflict):
        await submitted(submitter, asked(3 * INLINE, task_id="order-1"))
    assert await stored(objects) == before


async def test_what_is_refused_leaves_nothing_in_the_store(bus: Bus, objects: Objects) -> None:
    config = Config(pools=CONFIG.pools, limits=Limits(inline_bytes=INLINE, backlog=2))
    submitter = Submitter(bus, config, objects)
    for _ in range(2):
        await submitted(submitter, asked())
    with pytest.raises(BacklogFull):
        await submitted(submitter, asked())
    assert len(await stored(objects)) == 2
    assert await bus.commands.call("ZCARD", keys.OBJECTS) == 2


async def test_without_the_store_nothing_is_made_and_nothing_is_charged(
    bus: Bus, objects: Objects, tmp_path: Path
) -> None:
    live = Live(Policy(tenants={"default": Tenant(tokens_per_min=100_000)}))
    config = Config(pools=CONFIG.pools, limits=LIMITS, live=live)
    (tmp_path / "objects").rename(tmp_path / "away")
    submitter = Submitter(bus, config, objects)
    with pytest.raises(StoreUnavailable):
        await submitted(submitter, asked(config=config))
    held = await bus.commands.call("HVALS", keys.quota("default", "tokens"))
    assert (sum(map(int, held)), await bus.commands.call("KEYS", tasks.SHARD.task("*"))) == (0, [])
    assert Quotas(bus, config).limits(asked(config=config).task)
    await submitted(submitter, asked(10, config=config))  # one that needs no store is taken
    (tmp_path / "away").rename(tmp_path / "objects")
    await submitted(submitter, asked(config=config))
    assert len(await stored(objects)) == 1


async def test_what_another_submission_has_made_stays_charged(
    bus: Bus, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two schedulers may have the same entry of a door, and the store may take the body of one of them."""
    live = Live(Policy(tenants={"default": Tenant(tokens_per_min=100_000)}))
    config = Config(pools=CONFIG.pools, limits=LIMITS, live=live)
    request, other = asked(config=config), Submitter(bus, config, objects)
    task_id = other.new_id(request)
    broken = Objects(objects.url)

    async def fails(key: str, data: bytes) -> None:
        await other.submit(request, task_id)
        raise StoreUnavailable(objects.url, "it is full")

    monkeypatch.setattr(broken, "put", fails)
    with pytest.raises(StoreUnavailable):
        await Submitter(bus, config, broken).submit(request, task_id)
    assert sum(map(int, await bus.commands.call("HVALS", keys.quota("default", "tokens")))) > 0


async def test_a_full_pool_hands_the_body_on_to_its_fallback_and_keeps_none(bus: Bus, objects: Objects) -> None:
    alias = Alias(targets=[Target(model=tasks.MODEL)], fallbacks=["echo-2"], shadow=Shadow(model="echo-2"))
    config = Config(
        pools={**CONFIG.pools, "big": Pool(model="echo-2", engine="echo")},
        limits=Limits(inline_bytes=INLINE, backlog=2),
        live=Live(Policy(aliases={"chat": alias})),
    )
    submitter = Submitter(bus, config, objects)
    for _ in range(2):
        await submitted(submitter, asked(config=config))
    before = await stored(objects)
    body = asked().body.replace(tasks.MODEL.encode(), b"chat")
    made = await submitted(submitter, from_openai(config, ANONYMOUS, CHAT, body))
    task, _ = await kept(bus, made)
    assert (task.model, made[:4], task.stored is not None) == ("echo-2", "big.", True)
    assert task.stored is not None
    assert await Large(bus, objects, INLINE).get(made, task.stored) == body.replace(b"chat", b"echo-2", 1)
    known = {*before, object_key(made, task.stored)}

    async def copied() -> str:
        """The task of the shadow, when it was made."""
        for key in set(await stored(objects)) - known:
            if await bus.commands.call("EXISTS", keys_of(task_of(key))[0].task(task_of(key))):
                return task_of(key)
        return ""

    await wait_until(copied, "the shadow has a body of its own")
    copy, _ = await kept(bus, await copied())
    assert (copy.shadow_of, copy.stored is not None) == (made, True)


async def test_whose_answer_others_may_be_given_is_told_to_the_worker(bus: Bus, objects: Objects) -> None:
    submitter = Submitter(bus, CONFIG, objects)
    for request, shared in ((asked(), False), (cached(), True)):
        task, _ = await kept(bus, await submitted(submitter, request))
        assert task.shared is shared


async def test_a_store_that_hangs_is_given_up(bus: Bus, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(*_: object, **__: object) -> bytes:
        await asyncio.Event().wait()
        return b""

    large, task_id = Large(bus, objects, INLINE), tasks.new_id()
    name = await large.put(task_id, b"x")
    monkeypatch.setattr(large_bodies, "PATIENCE_S", 0.05)
    monkeypatch.setattr(obstore, "get_async", hangs)
    monkeypatch.setattr(obstore, "get_range_async", hangs)
    with pytest.raises(StoreUnavailable):
        await large.get(task_id, name)
    with pytest.raises(StoreUnavailable):
        await anext(large.read(task_id, name))


def cached() -> Request:
    return from_openai(CONFIG, ANONYMOUS, CHAT, asked().body, wishes=Wishes(cache="60"))


async def test_a_task_that_is_made_an_hour_later_has_its_body(bus: Bus, objects: Objects) -> None:
    """A submission failed behind the put, and is repeated when the sweep looks at what it left: each put has its own object."""
    large, request = Large(bus, objects, INLINE), asked()
    submitter = Submitter(bus, CONFIG, objects)
    task_id = submitter.new_id(request)
    left = object_key(task_id, await large.put(task_id, request.body))
    await bus.commands.call("ZADD", keys.OBJECTS, 1, left)
    await submitter.submit(request, task_id)
    await bus.commands.call("DEL", tasks.SHARD.task(task_id))
    again = await large.put(task_id, request.body)
    await ObjectSweep(bus, objects).look()
    assert left not in await stored(objects)
    assert await large.get(task_id, again) == request.body
