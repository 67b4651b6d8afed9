"""The start of a scheduler: it waits for a Redis that is away just then, as every loop of a service does."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from services.scheduler.app import prepared
from shared import keys
from shared.bus.client import Bus
from shared.config import Config, Pool
from shared.errors import ConfigError
from shared.lifespan import unless_stopped
from shared.policy import Live, Policy, Tenant
from tests.support import tasks
from tests.support.redis import Proxy
from tests.support.server import starving
from tests.support.waiting import wait_until

POOL, SHARD = next(iter(tasks.CONFIG.pools)), tasks.SHARD


@pytest.fixture
def config() -> Config:
    return Config(pools=tasks.CONFIG.pools, live=Live(Policy(tenants={"acme": Tenant(weight=3.0)})))


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(redis_url) as between:
        yield between


@pytest.fixture(autouse=True)
def warnings_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


def told(caplog: pytest.LogCaptureFixture, words: str) -> Callable[[], object]:
    return lambda: any(words in line.message for line in caplog.records if line.levelno == logging.WARNING)


def asked(proxy: Proxy, command: bytes) -> Callable[[], object]:
    return lambda: any(command in piece for piece in proxy.upstream)


async def shards_and_terms(bus: Bus) -> tuple[bool, bool]:
    found = [await bus.commands.call("EXISTS", key) for key in (keys.SHARDS, SHARD.tenants)]
    return bool(found[0]), bool(found[1])


async def test_it_registers_its_shards_and_tells_the_terms(bus: Bus, config: Config) -> None:
    started = await prepared(bus, config)
    assert started.shards == {(POOL, 0): config.pools[POOL].partitions}
    assert await shards_and_terms(bus) == (True, True)


async def test_it_waits_for_a_redis_that_goes_away_while_it_starts(
    bus: Bus, proxy: Proxy, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    async with Bus(proxy.url, name="starting") as away:
        await away.commands.call("PING")
        proxy.stall()
        starting = asyncio.create_task(prepared(away, config))
        await wait_until(asked(proxy, b"HKEYS"), "it has asked for the shards")
        proxy.cut()
        await wait_until(told(caplog, "cannot start yet"), "it says that it waits")
        assert not starting.done()
        proxy.flow()
        await starting
    assert await shards_and_terms(bus) == (True, True)


async def test_it_waits_for_the_terms_too(bus: Bus, config: Config, caplog: pytest.LogCaptureFixture) -> None:
    await bus.commands.call("SET", SHARD.tenants, "not ours")
    starting = asyncio.create_task(prepared(bus, config))
    await wait_until(told(caplog, "WRONGTYPE"), "it says what it waits for")
    await bus.commands.call("DEL", SHARD.tenants)
    await starting
    assert await shards_and_terms(bus) == (True, True)


async def test_it_waits_for_memory(bus: Bus, config: Config, caplog: pytest.LogCaptureFixture) -> None:
    async with starving(bus):
        starting = asyncio.create_task(prepared(bus, config))
        await wait_until(told(caplog, "OOM"), "it says what it waits for")
        assert await shards_and_terms(bus) == (False, False)
    await starting


async def test_told_to_stop_it_waits_no_longer(bus: Bus, config: Config, caplog: pytest.LogCaptureFixture) -> None:
    await bus.commands.call("SET", SHARD.tenants, "not ours")
    stop = asyncio.Event()
    starting = asyncio.create_task(unless_stopped(stop, prepared(bus, config)))
    await wait_until(told(caplog, "cannot start yet"), "it waits")
    stop.set()
    assert await starting is None


async def test_a_shard_with_other_partitions_is_not_waited_for(bus: Bus, config: Config) -> None:
    await prepared(bus, config)
    more = Pool(model=config.pools[POOL].model, partitions=config.pools[POOL].partitions + 1)
    with pytest.raises(ConfigError, match="partitions"):
        await prepared(bus, Config(pools={POOL: more}))
