"""From lines of the input to open items whose tasks are submitted, in order, as many as there is room for."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import msgspec
from msgspec import Struct

from services.scheduler import metrics
from services.scheduler.batches.items import Item, Reader, Refused, custom_id_of, duplicate, longest_line
from services.scheduler.batches.lines import Line, lines
from services.scheduler.batches.scripts import Opened, feed
from services.scheduler.batches.store import InputGone
from services.scheduler.batches.validation import is_twice
from services.scheduler.batches.work import Tools, Work
from shared import keys
from shared.batches import End, Fault
from shared.bus.script import MAX_BYTES
from shared.clock import monotonic_s
from shared.errors import MemoryFull, RequestError
from shared.messages import encode
from shared.request import Request
from shared.submit import Submitted

log = logging.getLogger(__name__)

PAGE = 100
"""Items that are submitted and opened together: one script call each."""
REFUSED_S = (0.2, 1.0)
"""Between two tries after a refusal; drawn at random, so that batches do not come back together."""
TOO_MANY = 429
MEMORY_FULL = "memory_full"
"""Told as ingress tells it. It is no error of the bus here: ends that were gathered must not be forgotten for it, since only their
segments make room in Redis."""


class Ask(Struct):
    """A line that was read and is not fed yet."""

    number: int
    line: Line
    custom_id: str | None
    request: Request | None = None
    fault: Fault | None = None


class Feeding:
    """Reads on where the batch's offset stands."""

    def __init__(self, tools: Tools, work: Work, twice: bytes, window: Callable[[], int]) -> None:
        """`window`: how many items may be tasks at once."""
        self._tools, self._work, self._twice, self._window = tools, work, twice, window
        self._reader = Reader(tools.config, work.batch)
        self._lines: AsyncGenerator[Line, None] | None = None
        self._asks: list[Ask] = []
        self._gone: Fault | None = None
        self._offset, self._line = work.batch.offset, work.batch.lines
        self._next_number = work.batch.fed
        self._most, self._wait_until_s = PAGE, 0.0
        self._refusal = ""
        """Code of the one that was logged last."""
        self.over = False
        """All that the file holds was fed."""
        self.ended: list[int] = []
        """Items whose tasks were found to have ended: nobody is going to be told of it again."""

    async def feed(self) -> bool:
        """A page; whether there was anything to do. Raises: Fenced, OutOfStep, StoreUnavailable, BusError."""
        room = PAGE if self._work.stop else min(self._window() - len(self._work.numbers), self._most)
        if self.over or room <= 0 or (monotonic_s() < self._wait_until_s and not self._work.stop):
            return False
        page = await self._page(room)
        if not page:
            self.over = True
            return False
        items = await self._items(page)
        if not items:
            return False
        last = page[len(items) - 1].line
        opened = [Opened(ask.number, encode(item)) for ask, (item, _) in zip(page, items, strict=False)]
        await self._open(self._offset, last.behind, last.number, opened)
        for ask, (item, submitted) in zip(page, items, strict=False):
            self._work.add(ask.number, item)
            if submitted is not None and not submitted.new and submitted.state.terminal:
                self.ended.append(ask.number)
        del self._asks[: len(items)]
        self._offset, self._line = last.behind, last.number
        return True

    def retry(self) -> None:
        """Tasks have ended: what was refused may be taken after all."""
        self._wait_until_s = 0.0

    async def again(self, number: int, item: Item) -> None:
        """Its task is nowhere: Redis has lost it, with its end or without. The item is submitted once more, or ends as those do that
        were never begun.

        Raises: as `feed`.
        """
        ask = Ask(number, Line(item.line, item.offset, item.offset + item.length, b""), item.custom_id)
        if self._work.stop is None:
            try:
                ask.line = msgspec.structs.replace(ask.line, text=await self._text(item))
                self._read(ask)
            except InputGone as error:
                ask.fault = gone(error)
        ((again, _),) = await self._items([ask]) or [(item, None)]
        await self._open(self._offset, self._offset, self._line, [Opened(number, encode(again))])
        self._work.numbers.pop(item.task_id, None)
        self._work.add(number, again)

    async def close(self) -> None:
        if self._lines is not None:
            await self._lines.aclose()

    # -- parts

    async def _open(self, before: int, behind: int, lines: int, opened: list[Opened]) -> None:
        work = self._work
        work.check(await feed(self._tools.bus, work.batch.id, work.fence, before, behind, lines, opened))

    async def _page(self, room: int) -> list[Ask]:
        """What was read and not fed, and more of the file up to `room` lines."""
        if self._lines is None:
            self._lines = self._rest()
        size = sum(len(ask.line.text or b"") for ask in self._asks)
        total = self._work.batch.total
        while len(self._asks) < room and size < MAX_BYTES and self._next_number < total:
            line = await anext(self._lines, None)
            if line is None:
                break
            self._asks.append(self._ask(line))
            size += len(line.text or b"")
        return self._asks[:room]

    async def _text(self, item: Item) -> bytes:
        text = b""
        async with aclosing(self._tools.store.read(self._work.batch, item.offset, over=False)) as pieces:
            async for piece in pieces:
                text += piece[: item.length - len(text)]
                if len(text) == item.length:
                    break
        return text

    async def _rest(self) -> AsyncGenerator[Line, None]:
        """Of the file. If it is there no more, so many lines without text as there were."""
        batch = self._work.batch
        offset, number = self._offset, self._line
        try:
            pieces = self._tools.store.read(batch, offset, over=self._work.stop is not None)
            async for line in lines(pieces, longest_line(self._tools.config), offset=offset, number=number):
                yield line
                offset, number = line.behind, line.number
        except InputGone as error:
            self._gone = gone(error)
            for _ in range(batch.total - self._next_number):
                yield Line(0, offset, offset + 1, b"")
                offset += 1

    def _ask(self, line: Line) -> Ask:
        ask = Ask(self._next_number, line, custom_id_of(line))
        self._next_number += 1
        if line.number == 0:
            ask.fault = self._gone
        elif is_twice(self._twice, ask.number) and ask.custom_id is not None:
            ask.fault = duplicate(ask.custom_id, line.number)
        else:
            self._read(ask)
        return ask

    def _read(self, ask: Ask) -> None:
        """Into a request, or a fault; neither, if nothing is begun any more."""
        remaining_s = self._work.left_s
        if self._work.stop or remaining_s <= 0:
            return
        try:
            ask.request = self._reader.request(ask.line, remaining_s)
        except Refused as refused:
            ask.fault = refused.fault

    async def _items(self, page: list[Ask]) -> list[tuple[Item, Submitted | None]]:
        """Of the first asks of the page, up to one that is refused for now. Raises: BusError."""
        verdicts = await asyncio.gather(*(self._submit(ask) for ask in page), return_exceptions=True)
        items: list[tuple[Item, Submitted | None]] = []
        for ask, verdict in zip(page, verdicts, strict=True):
            if refusal := refusal_of(verdict):
                self._refused(refusal, verdict, len(items))
                return items
            if isinstance(verdict, RequestError):
                ask.fault, verdict = Fault(code=str(verdict.code), message=str(verdict), line=ask.line.number), None
            if isinstance(verdict, BaseException):
                raise verdict
            items.append((self._item(ask, verdict), verdict))
        self._most = min(PAGE, self._most * 2)
        return items

    def _refused(self, code: str, verdict: object, accepted: int) -> None:
        """Fewer the next time: what is refused was read and sent in vain."""
        metrics.BATCH_WAITS.labels(code).inc()
        if code != self._refusal:
            log.info("%s waits: %s", self._work.batch.id, verdict)
            self._refusal = code
        self._most = max(1, accepted)
        self._wait_until_s = monotonic_s() + random.uniform(*REFUSED_S)

    async def _submit(self, ask: Ask) -> Submitted | None:
        """None: it is not begun, since it cannot or may not be any more."""
        submitter, batch, remaining_s = self._tools.submitter, self._work.batch, self._work.left_s
        if ask.request is None or self._work.stop or remaining_s <= 0:
            return None
        request = within(ask.request, remaining_s, batch.expires_at_ms + self._tools.batches.kept_ms)
        origin = batch.id.encode(), batch.salt.encode(), b"%d" % ask.number
        return await submitter.submit(request, submitter.new_id(request, *origin))

    def _item(self, ask: Ask, submitted: Submitted | None) -> Item:
        line = ask.line
        item = Item(line.number, line.offset, line.behind - line.offset, ask.custom_id)
        if submitted is not None:
            item.task_id, item.cached = submitted.id, ask.request is not None and ask.request.cache is not None
        elif ask.fault is not None:
            item.end, item.fault = End.FAILED, ask.fault
        else:
            item.end = self._work.stop or End.EXPIRED
        return item


def refusal_of(verdict: object) -> str:
    """The code of what is only refused for now; else empty."""
    if isinstance(verdict, MemoryFull):
        return MEMORY_FULL
    return str(verdict.code) if isinstance(verdict, RequestError) and verdict.status == TOO_MANY else ""


def within(request: Request, remaining_s: float, kept_until_ms: int) -> Request:
    """The request, in what is left of the window: it may have waited here since it was read. Its result waits to be gathered, which
    takes a place."""
    task = msgspec.structs.replace(request.task, expires_in_s=min(request.task.expires_in_s, remaining_s))
    fallbacks = tuple(within(way, remaining_s, kept_until_ms) for way in request.fallbacks)
    return msgspec.structs.replace(request, task=task, fallbacks=fallbacks, kept_until_ms=kept_until_ms)


def gone(error: InputGone) -> Fault:
    return Fault(code="input_file_not_found", message=f"The input file cannot be read any more: {error}")


async def read_twice(tools: Tools, work: Work) -> bytes:
    """Which items stand before, as validation found. Raises: BusError."""
    return await tools.bus.read("HGET", keys.batch(work.batch.id, "state"), "twice") or b""
