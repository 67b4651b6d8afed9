"""One engine of each kind for all contract tests: starting vLLM takes seconds."""

import contextlib
import logging
import warnings
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.inference.engine import Engine
from tests.support.engines import REAL, make_engine
from tests.support.upstream import served


@pytest_asyncio.fixture(scope="package", loop_scope="package", params=["echo", "openai", "python", REAL])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """`openai` has for its upstream the echo engine, behind a server in this process."""
    level = logging.root.level
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(served(make_engine("echo"))) if request.param == "openai" else ""
        made = make_engine(request.param, upstream=upstream)
        with warnings.catch_warnings(action="ignore"):
            await made.start()
        assert logging.root.level == level, "an engine that silences its process hides what becomes of its tasks"
        yield made
        await made.stop()
