"""An engine over HTTP that is down or overloaded is left in peace, and no task is lost or failed for it."""

import re
from collections.abc import Iterator

import httpx
import pytest

from services.inference.breaker import FAILED_TASKS
from tests.flow.test_task_life import MODEL, chat
from tests.support.deployment import Deployment, deployment

CONFIG = f"""
[pools.smol]
model = "{MODEL}"
engine = "echo"
[pools.smol.echo]
faults = true
[limits]
failures = 0
"""


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One of each service; with `faults` the echo engine counts as one over HTTP."""
    with deployment(tmp_path_factory.mktemp("remote"), config=CONFIG) as running:
        yield running


def measured(deployed: Deployment, name: str) -> float:
    """As the worker itself counts."""
    said = httpx.get(f"{deployed.replicas['inference'][0]}/metrics").text
    found = re.search(rf"^{re.escape(name)} (\S+)$", said, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


async def test_after_many_refusals_tasks_wait_for_the_engine_instead_of_failing(remote: Deployment) -> None:
    async with httpx.AsyncClient(base_url=remote.http, timeout=30) as client:
        for number in range(FAILED_TASKS):
            refused = await client.post("/v1/chat/completions", json=chat(f"!busy {number}"))
            assert refused.status_code == 429
        assert measured(remote, 'hr_breaker_opened_total{why="failures"}') == 1
        answer = await client.post("/v1/chat/completions", json=chat("are you there"))
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == "are you there"
