"""The HTTP door in this process, on a real Redis, with nobody behind it: what it does can be seen in the keys."""

from collections.abc import AsyncIterator

import httpx
import pytest

from services.ingress.app import build
from services.ingress.attendance import Attendance
from services.ingress.settings import Settings
from shared.bus.client import Bus
from shared.bus.tail import Tail, Tails
from shared.cancel import Canceller
from shared.config import Config, Limits, Pool
from tests.support import tasks
from tests.support.tails import tailing

CONFIG = Config(
    pools={"smol": Pool(model=tasks.MODEL, engine="echo", shards=2), "big": Pool(model="echo-2", engine="echo")},
    limits=Limits(backlog=100),
)


@pytest.fixture
async def http(bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    others = [Tail(bus, pool=pool, shard=n, partitions=1, replica="r1") for pool, n in (("smol", 1), ("big", 0))]
    async with tailing(bus) as tail:
        attendance = Attendance(bus, Canceller(bus, CONFIG))
        app = build(bus, CONFIG, Settings(), Tails([tail, *others]), attendance)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ingress") as client:
            yield client
