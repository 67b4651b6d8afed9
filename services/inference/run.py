"""One running task: its chunks, kept until the end, and how far they are published."""

import asyncio
from collections.abc import Sequence

from msgspec import Raw, Struct

from services.inference.engine import Chunk
from services.inference.scripts import Emission, Hand, Running
from shared.clock import monotonic_s
from shared.errors import HeadraceError
from shared.messages import Chunks, Task, decode_task, encode


class Parting(Struct, frozen=True):
    """Why a worker gives up a task that it runs, and what the task is charged for it (release.lua)."""

    charge: str
    why: str


FENCED = Parting("none", "fenced")
DRAINED = Parting("none", "drained")
ENGINE_DIED = Parting("crash", "engine_died")
OUT_OF_STEP = Parting("none", "out_of_step")
UNREACHABLE = Parting("none", "redis_unreachable")
UNREADABLE = Parting("crash", "unreadable")
BROKEN = Parting("crash", "broken")


class Fenced(HeadraceError):
    """Another worker has the task."""


class Run:
    """Chunk numbers count from 1, over all attempts; `published` is the last one that Redis has acknowledged."""

    def __init__(self, hand: Hand, running: Running) -> None:
        self.hand, self.attempt, self.body = hand, running.attempt, running.body
        self.task: Task = decode_task(running.spec)
        self.waited_s = running.waited_ms / 1000
        self.started_at_s = monotonic_s()
        self.chunks: list[Chunk] = []
        """From chunk `_skipped` + 1 on: those of earlier attempts are there once they were read from the log."""
        self._skipped = self.published = running.published
        self.based = running.published == 0
        """Readers know what this attempt's first chunk follows."""
        self.emitting: asyncio.Future[None] | None = None
        """Set while a range of this task is on its way: there is at most one."""
        self.working: asyncio.Task[None] | None = None
        self.parting: Parting | None = None
        """Set when the run is to be broken off."""
        self.ending = False
        """The run has its answer: it is too late to break it off."""

    @property
    def id(self) -> str:
        return self.hand.id

    @property
    def last(self) -> int:
        return self._skipped + len(self.chunks)

    @property
    def unpublished(self) -> bool:
        return self.last > self.published

    def restore(self, chunks: Sequence[Chunk]) -> None:
        """Take over what earlier attempts published; nothing of it: start over."""
        self.chunks, self._skipped, self.published = list(chunks), 0, len(chunks)

    def emission(self) -> Emission:
        """All that is not published yet, as one range."""
        first, last = self.published + 1, self.last
        event, journal = self.range(first, last)
        return Emission(self.id, self.hand.epoch, first, last, event, journal)

    def range(self, first: int, last: int) -> tuple[bytes, bytes]:
        """The event and the journal of the chunks first..last; both empty for an empty range."""
        chunks = self.chunks[first - 1 - self._skipped : last - self._skipped]
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
