"""One engine of each kind for all contract tests: starting vLLM takes seconds."""

import logging
import warnings
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.inference.engine import Engine
from tests.support.engines import REAL, make_engine


@pytest_asyncio.fixture(scope="package", loop_scope="package", params=["echo", REAL])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    made, level = make_engine(request.param), logging.root.level
    with warnings.catch_warnings(action="ignore"):
        await made.start()
    assert logging.root.level == level, "an engine that silences its process hides what becomes of its tasks"
    yield made
    await made.stop()
