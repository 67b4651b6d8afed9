"""The first pass over a batch's input: how many items it has, which stand twice, and whether any of them is valid."""

import asyncio

import msgspec

from services.scheduler.batches.items import Reader, Refused, custom_id_of, digest_of, duplicate, longest_line
from services.scheduler.batches.lines import Line, lines
from services.scheduler.batches.store import InputGone
from services.scheduler.batches.work import Tools, Work
from shared.batches import Fault, Status, move
from shared.bus.connection import Arg

TOLD = 100
"""Faults that are told when all lines have some."""
TURN = 100
"""Lines between two turns of the event loop: some milliseconds."""


class Validation:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._seen: set[int] = set()
        self._twice: list[int] = []
        self.faults: list[Fault] = []
        self.total = self.faulty = 0
        self.model = ""

    def take(self, line: Line) -> None:
        number, self.total = self.total, self.total + 1
        try:
            custom_id, model = self._reader.check(line)
            self.model = self.model or model
        except Refused as refused:
            self._fault(refused.fault)
            if (said := custom_id_of(line)) is not None:
                self._is_new(said)
        else:
            if not self._is_new(custom_id):
                self._twice.append(number)
                self._fault(duplicate(custom_id, line.number))

    def twice(self) -> bytes:
        """A bit for each item: its custom_id stands before it. Empty: none does."""
        bits = bytearray(self.total // 8 + 1 if self._twice else 0)
        for number in self._twice:
            bits[number // 8] |= 1 << number % 8
        return bytes(bits)

    def _is_new(self, custom_id: str) -> bool:
        digest, before = digest_of(custom_id), len(self._seen)
        self._seen.add(digest)
        return len(self._seen) > before

    def _fault(self, fault: Fault) -> None:
        self.faulty += 1
        if len(self.faults) < TOLD:
            self.faults.append(fault)


def is_twice(bits: bytes, number: int) -> bool:
    return bool(bits) and bool(bits[number // 8] >> number % 8 & 1)


async def validate(tools: Tools, work: Work) -> None:
    """The batch is in progress afterwards, or has failed. Raises: Fenced, OutOfStep, StoreUnavailable, BusError."""
    batch, limit = work.batch, tools.config.limits.batch_lines
    found = Validation(Reader(tools.config, batch))
    try:
        async for line in lines(tools.store.read(batch, over=work.stop is not None), longest_line(tools.config)):
            if found.total == limit:
                message = f"The file has more than {limit} lines (limits.batch_lines). Split it."
                await fail(tools, work, [Fault(code="too_many_lines", message=message)], 0)
                return
            found.take(line)
            if found.total % TURN == 0:
                await asyncio.sleep(0)
    except InputGone as error:
        message = f"The input file cannot be read: {error}"
        await fail(tools, work, [Fault(code="input_file_not_found", message=message, param="input_file_id")], 0)
        return
    if not found.total:
        await fail(tools, work, [Fault(code="empty_file", message="The file has no line.", param="input_file_id")], 0)
    elif found.faulty == found.total:
        await fail(tools, work, found.faults, found.total)
    else:
        fields: dict[str, Arg] = {"total": found.total, "model": found.model}
        if twice := found.twice():
            fields["twice"] = twice
        await _move(tools, work, Status.IN_PROGRESS, 0, fields)


async def fail(tools: Tools, work: Work, faults: list[Fault], total: int) -> None:
    """The batch as a whole: nothing of it was begun."""
    fields: dict[str, Arg] = {"faults": msgspec.json.encode(faults), "total": total, "failed": total, "fed": total}
    await _move(tools, work, Status.FAILED, tools.batches.kept_ms, fields)


async def _move(tools: Tools, work: Work, to: Status, kept_ms: int, fields: dict[str, Arg]) -> None:
    work.check(
        await move(tools.bus, work.batch.id, work.fence, [Status.VALIDATING], to, kept_ms=kept_ms, fields=fields)
    )
