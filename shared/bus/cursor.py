"""A place in a task's log, as clients keep it."""

import re

from msgspec import Struct

from shared.errors import InvalidRequest
from shared.ids import GENERATION

EntryId = tuple[int, int]
START: EntryId = (0, 0)
_CURSOR = re.compile(r"(\d{1,4})\.(\d{1,9})\.(\d{1,16})-(\d{1,16})\.(\d{1,9})\.(\d{1,9})")


class Cursor(Struct, frozen=True):
    """A place in a task's log, and what had been delivered up to there."""

    position: EntryId = START
    attempt: int = 0
    last: int = 0
    """Number of the last chunk."""

    def __str__(self) -> str:
        """Opaque to clients: generation, incarnation, entry id, attempt, chunk."""
        ms, sequence = self.position
        return f"{GENERATION}.0.{ms}-{sequence}.{self.attempt}.{self.last}"


def entry_id(entry: bytes) -> EntryId:
    ms, _, sequence = entry.partition(b"-")
    return int(ms), int(sequence)


def parse_cursor(cursor: str) -> Cursor:
    """Raises: InvalidRequest."""
    if cursor in ("", "0"):
        return Cursor()
    match = _CURSOR.fullmatch(cursor)
    if match is None or int(match[1]) != GENERATION:
        raise InvalidRequest(f"{cursor[:80]!r} is not a cursor of this server; use '0' to start over.", param="after")
    return Cursor((int(match[3]), int(match[4])), int(match[5]), int(match[6]))
