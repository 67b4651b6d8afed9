"""Work that is done again and again."""

import asyncio
import logging

import pytest

from shared.errors import BusUnavailable
from shared.periodic import Periodic
from shared.probes import passing
from tests.support.waiting import wait_until


class Work:
    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        if self.faults:
            raise self.faults.pop(0)


@pytest.mark.parametrize("fault", [BusUnavailable("gone"), ValueError("a bug")], ids=lambda fault: type(fault).__name__)
async def test_fault_is_told_and_the_loop_goes_on(fault: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """An exception that ends the loop while the process looks alive is how queues stall for hours."""
    caplog.set_level(logging.CRITICAL)
    work = Work(fault, fault)
    loop = Periodic("tidying", 0.01, work)
    running = asyncio.create_task(loop.run())
    await wait_until(lambda: work.calls == 1, "it was called")
    assert loop.last_pass_s is None
    assert passing(loop)() == f"tidying: {fault}"
    await wait_until(lambda: passing(loop)() is None, "it made a pass")
    await loop.stop()
    await running


async def test_stopping_waits_for_no_interval() -> None:
    loop = Periodic("tidying", 3600, Work())
    running = asyncio.create_task(loop.run())
    await wait_until(lambda: loop.last_pass_s is not None, "it made a pass")
    await loop.stop()
    await asyncio.wait_for(running, 60)


async def test_waking_waits_for_no_interval() -> None:
    work = Work()
    loop = Periodic("tidying", 3600, work)
    running = asyncio.create_task(loop.run())
    await wait_until(lambda: work.calls == 1, "it was called")
    loop.wake()
    await wait_until(lambda: work.calls == 2, "it was called again")
    await loop.stop()
    await running
