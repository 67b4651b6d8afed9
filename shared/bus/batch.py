"""Items of many callers become one script call.

At most one call is under way; what arrives meanwhile is the next call. So a lone item leaves at once, and under load the
batch is as large as the moment offers, without a timer.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from shared.bus.script import MAX_BYTES, MAX_ITEMS

Item = TypeVar("Item")
Verdict = TypeVar("Verdict")


class Batcher(Generic[Item, Verdict]):
    """`run` gets up to MAX_ITEMS items and MAX_BYTES at a time, and answers one verdict per item, in order."""

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Verdict]]],
        *,
        size: Callable[[Item], int] | None = None,
    ) -> None:
        """`size` tells the bytes of an item; without it items are small and only their number counts."""
        self._run, self._size = run, size
        self._queue: deque[tuple[Item, asyncio.Future[Verdict]]] = deque()
        self._sender: asyncio.Task[None] | None = None

    def add(self, item: Item) -> asyncio.Future[Verdict]:
        """Queue an item for the next call. The future fails as the call fails."""
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all())
        return future

    async def drain(self) -> None:
        """Return when all that was added has its verdict."""
        if self._sender is not None:
            await asyncio.wait([self._sender])

    async def _send_all(self) -> None:
        try:
            while self._queue:
                await self._send(self._next())
        finally:
            self._sender = None

    def _next(self) -> list[tuple[Item, asyncio.Future[Verdict]]]:
        batch, size = [self._queue.popleft()], 0
        if self._size is None:
            while self._queue and len(batch) < MAX_ITEMS:
                batch.append(self._queue.popleft())
            return batch
        size = self._size(batch[0][0])
        while self._queue and len(batch) < MAX_ITEMS and (size := size + self._size(self._queue[0][0])) <= MAX_BYTES:
            batch.append(self._queue.popleft())
        return batch

    async def _send(self, batch: list[tuple[Item, asyncio.Future[Verdict]]]) -> None:
        try:
            verdicts = await self._run([item for item, _ in batch])
            answered = list(zip(batch, verdicts, strict=True))
        except Exception as error:  # noqa: BLE001 - handed to the callers, whose error it is
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), verdict in answered:
            if not future.done():
                future.set_result(verdict)
