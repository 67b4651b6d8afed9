"""Running tails, and what a subscription delivered."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from shared.bus.client import Bus
from shared.bus.cursor import EntryId
from shared.bus.tail import Tail
from shared.messages import Chunks, Event, Finished, Reset
from shared.record import Record


@asynccontextmanager
async def tailing(bus: Bus, replica: str = "r1", *, partitions: int = 1) -> AsyncIterator[Tail]:
    tail = Tail(bus, pool="smol", shard=0, partitions=partitions, replica=replica)
    running = asyncio.create_task(tail.run())
    try:
        await tail.joined.wait()
        yield tail
    finally:
        while not running.done():  # a wake-up that came before the read blocked is lost
            await tail.stop()
            await asyncio.wait([running], timeout=0.05)
        await running


class Recorder:
    """A sink that keeps everything, and can act in the middle of it."""

    def __init__(self) -> None:
        self.synced: list[Record | None] = []
        self.events: list[Event] = []
        self.positions: list[EntryId] = []
        self.live = 0
        self.on_first_sync: Callable[[], None] | None = None

    def on_sync(self, record: Record | None) -> None:
        self.synced.append(record)
        if self.on_first_sync is not None:
            act, self.on_first_sync = self.on_first_sync, None
            act()

    def on_event(self, position: EntryId, event: Event) -> None:
        self.positions.append(position)
        self.events.append(event)

    def on_live(self, position: EntryId) -> None:
        self.live += 1

    @property
    def finished(self) -> bool:
        return any(isinstance(event, Finished) for event in self.events)

    def story(self) -> list[str]:
        """Chunk numbers, resets and the end, in the order of delivery."""
        told: list[str] = []
        for event in self.events:
            match event:
                case Chunks():
                    told += [str(n) for n in range(event.first, event.last + 1)]
                case Reset():
                    told.append("reset")
                case Finished():
                    told.append("end")
                case _:
                    continue
        return told
