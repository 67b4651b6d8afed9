"""What the holder of a lease knows of its batch: a copy of what Redis has, thrown away after any error."""

import asyncio

from msgspec import Struct, field

from services.scheduler.batches.endings import Ending, faulty
from services.scheduler.batches.items import Item, decode_item
from services.scheduler.batches.store import Store
from shared import keys
from shared.batches import Batch, Batches, End, Fence, Status
from shared.bus.client import Bus
from shared.cancel import Canceller
from shared.clock import monotonic_s
from shared.config import Config
from shared.errors import HeadraceError
from shared.submit import Submitter


class Fenced(HeadraceError):
    """Another one holds the batch."""


class OutOfStep(HeadraceError):
    """What is remembered is not what Redis has: it is to be read again."""


class Tools(Struct, frozen=True):
    """What all batches of a process share."""

    bus: Bus
    config: Config
    store: Store
    batches: Batches
    submitter: Submitter
    canceller: Canceller
    validating: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One batch at a time: a large one takes memory for each of its lines."""


class Work:
    def __init__(self, batch: Batch, fence: Fence, open_items: dict[int, Item], at_ms: int) -> None:
        """`at_ms`: the time as Redis has it."""
        self.batch, self.fence = batch, fence
        self.open = open_items
        """Fed, and not ended as far as Redis knows."""
        self.numbers = {item.task_id: number for number, item in open_items.items() if item.end is None}
        """Items whose tasks go on, by task."""
        self.endings: list[Ending] = [
            faulty(batch.id, number, item) for number, item in open_items.items() if item.end is not None
        ]
        self.stop: End | None = None
        """Nothing more is begun: how the items end that were not."""
        self._over_at_s = 0.0
        self.see(batch.status, at_ms)
        self.told = False
        """The tasks that go on were told to stop."""

    @property
    def left_s(self) -> float:
        """Of the window. Between two looks at Redis' clock it is measured, so that no jump of this machine's can end a batch."""
        return self._over_at_s - monotonic_s()

    def see(self, status: Status, at_ms: int) -> None:
        """What Redis says by now."""
        left_ms = self.batch.expires_at_ms - at_ms
        self._over_at_s = monotonic_s() + left_ms / 1000
        if status is Status.CANCELLING:
            self.stop = End.CANCELLED
        else:
            self.stop = End.EXPIRED if left_ms <= 0 else None

    def add(self, number: int, item: Item) -> None:
        self.open[number] = item
        if item.end is None:
            self.numbers[item.task_id] = number
        else:
            self.endings.append(faulty(self.batch.id, number, item))

    def check(self, verdict: str) -> None:
        """Of a script. Raises: Fenced, OutOfStep."""
        if verdict == "fenced":
            raise Fenced(f"{self.batch.id} has another holder")
        if verdict != "ok":
            raise OutOfStep(f"{self.batch.id} stands otherwise than its holder thought: {verdict}")


async def read_work(tools: Tools, batch_id: str, fence: Fence) -> Work:
    """Raises: BatchNotFound, BusError."""
    batch = await tools.batches.read(batch_id)
    found = await tools.bus.read("HGETALL", keys.batch(batch_id, "open"))
    pairs = zip(found[::2], found[1::2], strict=True)
    open_items = {int(number): decode_item(item) for number, item in pairs}
    return Work(batch, fence, open_items, await tools.bus.time_ms())
