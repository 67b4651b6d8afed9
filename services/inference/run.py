"""One running task: its chunks, kept until the end, and how far they are published."""

import asyncio

from msgspec import Raw

from services.inference.engine import Chunk
from services.inference.scripts import Emission, Hand, Running
from shared.clock import monotonic_s
from shared.messages import Chunks, Task, decode_task, encode


class Run:
    """Chunk numbers count from 1; `published` is the last one that Redis has acknowledged."""

    def __init__(self, hand: Hand, running: Running) -> None:
        self.hand, self.attempt, self.body = hand, running.attempt, running.body
        self.task: Task = decode_task(running.spec)
        self.waited_s = running.waited_ms / 1000
        self.started_at_s = monotonic_s()
        self.chunks: list[Chunk] = []
        self.published = 0
        self.emitting: asyncio.Future[None] | None = None
        """Set while a range of this task is on its way: there is at most one."""
        self.working: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.hand.id

    @property
    def unpublished(self) -> bool:
        return len(self.chunks) > self.published

    def emission(self) -> Emission:
        """All that is not published yet, as one range."""
        first, last = self.published + 1, len(self.chunks)
        event, journal = self.range(first, last)
        return Emission(self.id, self.hand.epoch, first, last, event, journal)

    def range(self, first: int, last: int) -> tuple[bytes, bytes]:
        """The event and the journal of the chunks first..last; both empty for an empty range."""
        chunks = self.chunks[first - 1 : last]
        if not chunks:
            return b"", b""
        event = Chunks(attempt=self.attempt, first=first, last=last, chunks=[Raw(chunk.data) for chunk in chunks])
        return encode(event), _journal(chunks)


def _journal(chunks: list[Chunk]) -> bytes:
    """Token ids of each chunk, and before the first one those of the prompt: what a continuation starts from."""
    if not any(chunk.tokens or chunk.prompt for chunk in chunks):
        return b""
    journal: dict[str, object] = {"tokens": [chunk.tokens for chunk in chunks]}
    if chunks[0].prompt:
        journal["prompt"] = chunks[0].prompt
    return encode(journal)
