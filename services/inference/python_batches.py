"""Which calls run together in the python engine, and which one of them is to blame when that fails.

A batch that fails as a whole says nothing about the single call, so it is run again in halves until the one that fails is
alone: of 256 calls with one that kills, 16 runs find it, and 255 are answered. What ended a process, which may be any call that
ran in it, is run again in halves too, each with nothing else beside it.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Iterable
from itertools import count

from services.inference.engine import Answer, Chunk, EngineDead
from services.inference.python_frames import Body, Value

BATCH_BYTES = 64 * 1024 * 1024
"""A batch with so much is full: it is held once here and once in the process, twice for a moment. Smaller: large bodies lose the
company that they batch for."""

Told = Chunk | Answer | Value | EngineDead


class Item:
    """One call in the engine."""

    def __init__(self, task_id: str, body: Body, priority: int) -> None:
        self.task_id, self.body, self.priority = task_id, body, priority
        self.pieces: asyncio.Queue[Told] = asyncio.Queue()
        self.begun = False
        """It has made chunks: it cannot be run again unseen."""
        self.made = 0
        """Bytes that its chunks take here."""
        self.leaks = 0
        """Processes that held too much memory while it ran by itself."""
        self.over = False
        """It was answered, or nobody waits for it any more."""
        self.job: Job | None = None

    def tell(self, piece: Told) -> None:
        if self.over:
            return
        self.begun, self.over = True, not isinstance(piece, Chunk)
        self.pieces.put_nowait(piece)

    def let_go(self) -> None:
        """It is over. It and its job hold each other, and so would the body be held, until some collection of garbage."""
        self.body, self.job = Body(b""), None


class Job:
    """What one run of the callable is for."""

    def __init__(self, items: list[Item], *, alone: bool = False) -> None:
        self.items = items
        self.alone = alone
        """It may have ended a process: nothing runs beside it but other such jobs that it is given with."""
        for item in items:
            item.job = self

    @property
    def wanted(self) -> bool:
        return any(not item.over for item in self.items)


def halves(jobs: list[Job], *, alone: bool) -> list[list[Job]]:
    """What to run again, in turn, so that what is to blame is found: half of the jobs each, or half of the one's items."""
    if len(jobs) > 1:
        middle = len(jobs) // 2
        return [[Job(job.items, alone=alone) for job in half] for half in (jobs[:middle], jobs[middle:])]
    items = jobs[0].items
    middle = (len(items) + 1) // 2
    return [[Job(half, alone=alone)] for half in (items[:middle], items[middle:]) if half]


class Batches:
    """What waits: the most urgent call first, of these the oldest, in batches of at most `size`."""

    def __init__(self, size: int, wait_s: float) -> None:
        self._size, self._wait_s = size, wait_s
        self._since: dict[Item, float] = {}
        """In order of their coming."""
        self._bytes = 0
        """Of the bodies of these."""
        self._urgent: list[tuple[int, int, Item]] = []
        self._numbers = count()
        self._again: deque[list[Job]] = deque()

    def add(self, item: Item, now_s: float) -> None:
        self._since[item] = now_s
        self._bytes += item.body.size
        heapq.heappush(self._urgent, (item.priority, next(self._numbers), item))

    def add_again(self, groups: Iterable[list[Job]]) -> None:
        """Before everything else, for their items have waited once. What is alone goes to one process with its group."""
        self._again.extendleft(reversed(list(groups)))

    def remove(self, item: Item) -> bool:
        """Nobody waits for it any more, or it goes; did it wait? One that runs, or is run again, is left to its job."""
        waited = self._since.pop(item, None) is not None
        self._bytes -= item.body.size if waited else 0
        return waited

    @property
    def due_at_s(self) -> float | None:
        """When what waits goes, full batch or not; None: nothing waits for company."""
        return next(iter(self._since.values())) + self._wait_s if self._since else None

    def next(self, now_s: float, *, empty: bool) -> list[Job]:
        """What a process with room is to run, all at once; `empty`: it runs nothing else. Empty: nothing is due."""
        if jobs := self._next_again(empty=empty):
            return jobs
        due_at_s = self.due_at_s
        full = len(self._since) >= self._size or self._bytes >= BATCH_BYTES
        if due_at_s is None or not (full or now_s >= due_at_s):
            return []
        items: list[Item] = []
        size = 0
        while self._since and len(items) < self._size and size < BATCH_BYTES:
            _, _, item = heapq.heappop(self._urgent)
            if self.remove(item):
                items.append(item)
                size += item.body.size
        return [Job(items)]

    def _next_again(self, *, empty: bool) -> list[Job]:
        for group in list(self._again):
            if group[0].alone and not empty:
                continue
            self._again.remove(group)
            wanted = ([item for item in job.items if not item.over] for job in group)
            if jobs := [Job(items, alone=group[0].alone) for items in wanted if items]:
                return jobs
        return []

    def clear(self) -> None:
        self._since.clear()
        self._bytes = 0
        self._urgent.clear()
        self._again.clear()
