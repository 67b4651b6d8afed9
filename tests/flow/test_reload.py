"""headrace.toml changes while everything runs."""

import asyncio
import os
import signal
from collections.abc import Iterator

import httpx
import pytest

from tests.flow.test_task_life import MODEL, chat
from tests.support.deployment import Deployment, deployment, rewrite
from tests.support.waiting import wait_until

SERVICES = ("ingress", "scheduler", "inference", "notifier")
POLICY = '[tenants.acme]\nqueued = {}\n[aliases.assistant]\ntargets = [{{ model = "' + MODEL + '" }}]\n'


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One of each service, of its own: its file is changed."""
    with deployment(tmp_path_factory.mktemp("reload"), "--engine", "echo") as running:
        yield running


async def reloads(running: Deployment, outcome: str) -> list[float]:
    """Of each service, in turn."""
    counted = []
    async with httpx.AsyncClient(timeout=30) as client:
        for service in SERVICES:
            text = (await client.get(f"{running.replicas[service][0]}/metrics")).text
            name = f'hr_config_reloads_total{{outcome="{outcome}"}} '
            counted.append(sum(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name)))
    return counted


async def test_every_service_takes_a_change_refuses_a_fault_and_survives_sighup(running: Deployment) -> None:
    rewrite(running, POLICY.format(1000))

    async def taken() -> bool:
        return await reloads(running, "taken") == [1, 1, 1, 1]

    await wait_until(taken, "all took the change", timeout_s=30)
    rewrite(running, POLICY.format(-1))

    async def refused() -> bool:
        return await reloads(running, "refused") == [1, 1, 1, 1]

    await wait_until(refused, "all refused the fault", timeout_s=30)
    rewrite(running, POLICY.format(2000))
    before = running.processes()
    for service in SERVICES:
        os.kill(before[service][0], signal.SIGHUP)

    async def taken_again() -> bool:
        return await reloads(running, "taken") == [2, 2, 2, 2]

    await wait_until(taken_again, "all took the mended file", timeout_s=30)
    assert running.processes() == before


async def test_no_task_is_lost_while_the_file_changes_again_and_again(running: Deployment) -> None:
    taken = await reloads(running, "taken")
    async with httpx.AsyncClient(base_url=running.http, timeout=60) as client:
        asking = [asyncio.create_task(client.post("/v1/chat/completions", json=chat(f"word {n}"))) for n in range(200)]
        for number in range(3):
            rewrite(running, POLICY.format(10_000 + number))
            expected = [count + number + 1 for count in taken]

            async def all_took_it(expected: list[float] = expected) -> bool:
                return await reloads(running, "taken") == expected

            await wait_until(all_took_it, f"change {number} was taken", timeout_s=30)
            asking += [asyncio.create_task(client.post("/v1/chat/completions", json=chat("more"))) for _ in range(50)]
        answers = await asyncio.gather(*asking)
    assert {answer.status_code for answer in answers} == {200}
