"""What earlier attempts published, read back from the task's log: the start of a continuation."""

import logging
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from services.inference import metrics
from services.inference.engine import Chunk
from services.inference.run import Fenced, Run
from services.inference.scripts import Owner, rebase
from shared.bus.client import Bus
from shared.errors import UNDECODABLE
from shared.messages import Chunks, Reset, Resumed, decode_event

log = logging.getLogger(__name__)

PAGE = 500
"""Log entries of one read: under 0.2 ms of the server."""


class Journal(Struct):
    """Field `j` of a log entry: token ids of each of its chunks, and of the prompt beside the first chunk."""

    tokens: list[tuple[int, ...]]
    prompt: tuple[int, ...] = ()


_journal = msgspec.json.Decoder(Journal)


async def restore(bus: Bus, owner: Owner, run: Run) -> None:
    """Give the run the chunks of earlier attempts; if the log does not hold all of them any more, it starts over.

    Raises: Fenced, BusError.
    """
    try:
        chunks = await read_chunks(bus, owner.shard.log(run.id))
    except (*UNDECODABLE, KeyError, ValueError) as error:
        log.error("the log of %s cannot be read: %s", run.id, error)
        chunks = []
    if len(chunks) == run.published:
        run.restore(chunks)
    else:
        log.warning("%s starts over: its log holds %d of %d chunks", run.id, len(chunks), run.published)
        await tell(bus, owner, run, behind=[])


async def tell(bus: Bus, owner: Owner, run: Run, *, behind: Sequence[Chunk]) -> None:
    """Tell readers what the run's next chunk follows: all that was published, or nothing. Raises: Fenced, BusError."""
    verdict = await rebase(bus, owner, run.hand, attempt=run.attempt, behind=len(behind))
    if verdict != "ok":
        raise Fenced(verdict)
    metrics.CONTINUED.labels("resumed" if behind else "reset").inc()
    run.restore(behind)
    run.based = True


async def read_chunks(bus: Bus, log: str) -> list[Chunk]:
    """All chunks that stand, in order. Raises: BusError; msgspec.DecodeError for an entry that is not ours."""
    chunks: list[Chunk] = []
    after = "-"
    while page := await bus.read("XRANGE", log, after, "+", "COUNT", PAGE):
        for _, fields in page:
            _apply(dict(zip(fields[::2], fields[1::2], strict=True)), chunks)
        after = f"({page[-1][0].decode()}"
    return chunks


def _apply(entry: dict[bytes, bytes], chunks: list[Chunk]) -> None:
    match decode_event(entry[b"e"]):
        case Reset():
            chunks.clear()
        case Resumed() as event:
            del chunks[event.last :]
        case Chunks() as event:
            del chunks[event.first - 1 :]
            chunks += _made(event, entry.get(b"j"))
        case _:
            pass


def _made(event: Chunks, journal: bytes | None) -> list[Chunk]:
    noted = _journal.decode(journal) if journal else Journal([()] * len(event.chunks))
    made = [Chunk(bytes(data), tokens) for data, tokens in zip(event.chunks, noted.tokens, strict=True)]
    if noted.prompt:
        made[0] = Chunk(made[0].data, made[0].tokens, noted.prompt)
    return made
