"""The python engine behind the real services: what one task does to its process, and what the others hear of it."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.deployment import deployment

CONFIG = f"""
[pools.m]
model = "m"
engine = "python"
slots = 32

[pools.m.python]
callable = "engine_python_callables:batch"
path = "{Path(__file__).parent}"
batch_size = 8

[limits]
failures = 1
"""
KILLERS, REFUSED = (5, 17), 9


def body_of(number: int) -> dict[str, Any]:
    do = "os._exit" if number in KILLERS else "refuse" if number == REFUSED else ""
    return {"model": "m", "n": number, "do": do}


@pytest.mark.timeout(180)
def test_tasks_that_end_their_process_fail_and_all_others_are_completed(tmp_path: Path) -> None:
    with deployment(tmp_path, config=CONFIG) as deployed, httpx.Client(base_url=deployed.http, timeout=60) as client:
        asked = [{"route": "/invocations", "lane": "batch", "body": body_of(number)} for number in range(24)]
        ids = [client.post("/v1/tasks", json=task).json()["id"] for task in asked]
        ends = [client.get(f"/v1/tasks/{task}", params={"wait": 50}).json() for task in ids]
    for number, end in enumerate(ends):
        if number in KILLERS:
            assert (end["status"], end["error"]["code"], end["attempt"]) == ("failed", "callable_died", 2)
        elif number == REFUSED:
            assert (end["status"], end["error"]["code"], end["attempt"]) == ("failed", "invalid_request", 1)
        else:
            assert (end["status"], end["result"]["n"], end["attempt"]) == ("completed", number, 1)
