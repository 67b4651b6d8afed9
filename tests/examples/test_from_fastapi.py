"""A service before and behind Headrace: the same requests get the same answers, and one of the two loses what it had."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.architecture.sources import ROOT
from tests.examples.programs import python, serving
from tests.support.deployment import Deployment, deployment
from tests.support.ports import free_port
from tests.support.waiting import wait_until

EXAMPLE = ROOT / "examples" / "from_fastapi"
LIMITS = """
[limits]
lease_s = 2.0
"""


def series(count: int, days: int = 7) -> dict[str, Any]:
    """Sales that rise, with a week in them."""
    return {"sales": [20 + day % 7 * 3 + day / 50 + day**2 % 5 for day in range(count)], "days": days}


SHORT, LONG = series(35), series(500)
BAD: list[dict[str, Any]] = [{"sales": [1.0] * 40}, {"sales": [1.0, 2.0]}, {"sales": [1.0, 2.0] * 20, "days": 0}, {}]
ASYNC = {"prefer": "respond-async"}


@pytest.fixture(scope="module")
def headrace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    config = (EXAMPLE / "headrace.toml").read_text() + LIMITS
    with deployment(tmp_path_factory.mktemp("after"), config=config) as deployed:
        yield deployed


def service(name: str, headrace: str = "") -> tuple[str, tuple[Any, ...], dict[str, str]]:
    port = str(free_port())
    words = ("-m", "uvicorn", "--app-dir", EXAMPLE, f"{name}:app", "--port", port, "--log-level", "warning")
    return f"http://127.0.0.1:{port}", words, {"HEADRACE_URL": headrace}


def forecast(url: str, body: Any, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/forecast", json=body, headers=headers, timeout=60)


COMPUTE = f"""
import json, sys
sys.path.insert(0, {str(EXAMPLE)!r})
from model import Forecaster
model = Forecaster()
model.load()
print(json.dumps([model(body) for body in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def computed() -> Any:
    """[of SHORT, of LONG]: what the model says, with no service at all."""
    return json.loads(python("-c", COMPUTE, json.dumps([SHORT, LONG])))


def test_the_same_requests_get_the_same_answers(headrace: Deployment) -> None:
    before, after = service("before"), service("after", headrace.http)
    answers = []
    for url, words, environ in (before, after):
        with serving(f"{url}/docs", *words, environ=environ):
            answers.append(
                [(answer.status_code, answer.json()) for answer in (forecast(url, b) for b in (SHORT, *BAD))]
            )
    assert answers[0] == answers[1]
    assert [status for status, _ in answers[0]] == [200, 400, 422, 422, 422]


async def test_before_what_runs_is_lost_with_the_process() -> None:
    url, words, environ = service("before")
    with serving(f"{url}/docs", *words, environ=environ) as process:
        async with httpx.AsyncClient(timeout=60) as client:
            running = asyncio.create_task(client.post(f"{url}/forecast", json=series(1500)))
            assert (await client.post(f"{url}/forecast", json=SHORT)).status_code == 200
            process.send_signal(signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                await running


async def test_after_what_runs_and_what_waits_is_answered_though_the_worker_is_killed(
    headrace: Deployment, computed: Any
) -> None:
    url, words, environ = service("after", headrace.http)
    with serving(f"{url}/docs", *words, environ=environ):
        async with httpx.AsyncClient(timeout=60) as client:
            running = [asyncio.create_task(client.post(f"{url}/forecast", json=LONG)) for _ in range(2)]

            async def runs() -> bool:
                tasks = (await client.get(f"{headrace.http}/v1/tasks?limit=2")).json()["data"]
                return [task["status"] for task in tasks] in (["pending", "processing"], ["processing", "pending"])

            await wait_until(runs, "one runs and one waits", timeout_s=60)
            os.kill(headrace.processes()["inference"][0], signal.SIGKILL)
            answers = await asyncio.gather(*running)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.json() for answer in answers] == [computed[1]] * 2


async def test_after_the_service_itself_may_die_and_the_answer_is_there_all_the_same(
    headrace: Deployment, computed: Any
) -> None:
    url, words, environ = service("after", headrace.http)
    with serving(f"{url}/docs", *words, environ=environ):
        accepted = forecast(url, LONG, **ASYNC, **{"idempotency-key": "sales-17"})
        assert accepted.status_code == 202
    with serving(f"{url}/docs", *words, environ=environ):
        again = forecast(url, LONG, **ASYNC, **{"idempotency-key": "sales-17"})
        assert again.headers["location"] == accepted.headers["location"]
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:

            async def there() -> bool:
                return (await client.get(again.headers["location"])).status_code == 200

            await wait_until(there, "the forecast is there", timeout_s=60)
            found = (await client.get(again.headers["location"])).json()
            refused = forecast(url, BAD[0], **ASYNC).headers["location"]

            async def told() -> bool:
                return (await client.get(refused)).status_code == 400

            await wait_until(told, "the refusal is there", timeout_s=60)
    assert found == computed[1]


def test_clients_may_come_without_the_service(headrace: Deployment, computed: Any) -> None:
    answers = [
        httpx.post(f"{headrace.http}/invocations", json={"model": "forecaster", **body}, timeout=60)
        for body in (SHORT, *BAD)
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 400, 400, 400]
    assert answers[0].json() == computed[0]
    assert "at least 28 items" in answers[2].json()["error"]["message"]


def test_when_headrace_is_away_the_service_says_so() -> None:
    url, words, environ = service("after", f"http://127.0.0.1:{free_port()}")
    with serving(f"{url}/docs", *words, environ=environ):
        answer = forecast(url, SHORT)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
