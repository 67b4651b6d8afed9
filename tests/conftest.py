"""What every test may ask for: a real Redis, a bus on it, and the certainty that nothing is left behind."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from shared.bus.client import Bus
from tests.support import redis


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "keeps_keys: leaves keys in Redis that break the rules about what may be left")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with redis.redis_server() as url:
        yield url


@pytest.fixture(autouse=True)
def clean_redis(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whoever uses Redis finds it empty, and leaves only keys that may be left."""
    if "redis_url" not in request.fixturenames:
        yield
        return
    url = request.getfixturevalue("redis_url")
    redis.flush(url)
    yield
    faults = redis.faults_of_keys(url)
    redis.flush(url)
    if request.node.get_closest_marker("keeps_keys") is None:
        assert not faults, faults


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks still alive: {left}"


@pytest.fixture
async def bus(redis_url: str, no_task_left: None) -> AsyncIterator[Bus]:
    async with Bus(redis_url, name="test") as bus:
        yield bus
