"""How a worker leaves."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from services.inference import app
from services.inference.app import Service
from services.inference.engine import Answer, Call, Chunk
from services.inference.engine_echo import EchoEngine
from services.inference.scripts import Retired
from services.inference.settings import Settings
from shared.bus.client import Bus
from shared.bus.consume import Entry
from shared.errors import BusUnavailable
from shared.periodic import Periodic
from tests.support import tasks
from tests.support.tasks import CONFIG, MODEL
from tests.support.waiting import wait_until


class Told(EchoEngine):
    """Answers when it is told to."""

    def __init__(self, goes_on: asyncio.Event) -> None:
        super().__init__(model=MODEL, tokens_per_s=0, first_token_ms=0, max_model_len=99, slots=8, faults=True)
        self._goes_on = goes_on

    async def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        await self._goes_on.wait()
        yield Answer(status=200, body=b"{}")


class Deaf(EchoEngine):
    """Asked for its health it loses a cancellation, as `asyncio.wait_for` may in Python 3.11."""

    _lost = False

    def __init__(self) -> None:
        super().__init__(model=MODEL, tokens_per_s=0, first_token_ms=0, max_model_len=99, slots=8, faults=True)

    async def health(self) -> None:
        if not self._lost:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            self._lost = True


async def nothing() -> None: ...


async def test_a_worker_ends_though_its_engine_does_not_heed_that_nobody_asks_for_its_health_any_more(bus: Bus) -> None:
    owner = await tasks.worker(bus)
    service = Service(bus, owner, Deaf(), CONFIG, CONFIG.pools["smol"], drain_s=10)
    stop = asyncio.Event()
    reloading = Periodic("nothing", 60, nothing)
    working = asyncio.create_task(service._work(Settings(), stop, reloading, ""))
    try:
        await wait_until(lambda: service._consumer.last_pass_s, "it reads")
        stop.set()
        await wait_until(working.done, "it has left")
    finally:
        working.cancel()
        await asyncio.wait([working])


async def test_what_runs_may_end_though_what_has_not_started_cannot_be_handed_back_just_then(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failover while a worker was told to stop ended it at once, with all it ran."""
    goes_on = asyncio.Event()

    async def away(*_: object, **__: object) -> Retired:
        goes_on.set()
        raise BusUnavailable("away")

    monkeypatch.setattr(app, "retire", away)
    owner = await tasks.worker(bus)
    service = Service(bus, owner, Told(goes_on), CONFIG, CONFIG.pools["smol"], drain_s=10)
    hand = await tasks.handed(bus, owner)
    await service.worker.on_work([Entry(hand.entry, {b"t": hand.id.encode(), b"e": b"%d" % hand.epoch})])
    await wait_until(lambda: service.worker.runs, "it runs")
    await service._leave(asyncio.create_task(asyncio.sleep(0)))
    assert (await tasks.fields(bus, hand.id))["state"] == "completed"
