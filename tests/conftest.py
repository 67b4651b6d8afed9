"""What every test may ask for: a real Redis, a bus on it, and the certainty that nothing is left behind."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import settings

from shared.bus.client import Bus
from tests.support import redis

settings.register_profile("deep", max_examples=2000, stateful_step_count=100, deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "keeps_keys: leaves keys in Redis that break the rules about what may be left")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What depends on a script runs on each version of Redis, unless the one to use was given."""
    node = metafunc.definition
    everywhere = node.get_closest_marker("redis_versions") is not None or node.path.parent.name == "lua"
    if everywhere and "redis_url" in metafunc.fixturenames and redis.given_url() is None:
        metafunc.parametrize("redis_url", redis.VERSIONS, indirect=True, scope="session")


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    version = getattr(request, "param", None)
    if version is not None and version not in redis.servers():
        pytest.skip(f"no redis-server {version} here (deploy/setup.py says why); found: {', '.join(redis.servers())}")
    with redis.redis_server(redis.servers()[version] if version else None) as url:
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
