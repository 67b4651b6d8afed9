from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.support.deployment import Deployment, deployment

REPLICAS = "ingress=2,scheduler=2,inference=2,notifier=2"


@pytest.fixture(scope="package")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two replicas of every service, with the echo engine, on one Redis."""
    folder: Path = tmp_path_factory.mktemp("echo")
    with deployment(folder, "--engine", "echo", "--replicas", REPLICAS) as running:
        yield running


@pytest.fixture
async def http(echo: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=echo.http, timeout=30) as client:
        yield client


@pytest.fixture
async def producer(echo: Deployment) -> AsyncIterator[Any]:
    """Another system: it has a Redis client and the document, and nothing of ours."""
    client: Any = redis.asyncio.Redis.from_url(
        echo.redis, decode_responses=True, encoding_errors="replace", socket_timeout=60
    )
    yield client
    await client.aclose()
