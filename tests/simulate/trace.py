"""A trace: what came to a deployment, when, and how much work it was.

A CSV file with a head line, or JSON lines, by the name of the file. Columns that are left out have their defaults.

    arrival_s,tenant,lane,tokens_in,tokens_out,max_tokens,expires_in_s,prefix
    0.013,acme,interactive,412,96,256,0,
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shared.lifecycle import Lane
from shared.request import NAME

Tokens = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]


class Row(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One task."""

    arrival_s: Seconds
    """Since the trace began."""
    tenant: str = "default"
    lane: Lane = Lane.NORMAL
    tokens_in: Annotated[int, Meta(ge=1)]
    """Of the prompt."""
    tokens_out: Annotated[int, Meta(ge=1)]
    """Of the answer: what the scheduler learns when it is made, and not before."""
    max_tokens: Tokens = 0
    """Most that the client allowed; 0: not said."""
    expires_in_s: Seconds = 0.0
    """From its arrival to its deadline; 0: the longest that the deployment allows."""
    prefix: str = ""
    """Tasks of one prefix share the beginning of their prompts."""

    @property
    def tokens(self) -> int:
        return self.tokens_in + self.tokens_out


class TraceError(ValueError):
    """Names file, line, field and remedy."""


def read(path: Path) -> list[Row]:
    """In the order of arrival, which begins at 0. Raises: TraceError."""
    if path.suffix not in _READERS:
        raise TraceError(f"{path}: a trace ends in {' or '.join(_READERS)}")
    try:
        lines = list(_READERS[path.suffix](path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path} cannot be read: {error}") from None
    rows = [_row(path, number, line) for number, line in lines]
    if not rows:
        raise TraceError(f"{path} has no task")
    return ordered(rows)


def write(path: Path, rows: Sequence[Row]) -> None:
    """Raises: TraceError."""
    if path.suffix not in _READERS:
        raise TraceError(f"{path}: a trace ends in {' or '.join(_READERS)}")
    if path.suffix == ".jsonl":
        path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        return
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row.__struct_fields__)
        writer.writerows(msgspec.structs.astuple(row) for row in rows)


def ordered(rows: Iterable[Row]) -> list[Row]:
    """By arrival, the first at 0, to the millisecond: that is what the scripts know of time."""
    rows = sorted(rows, key=lambda row: row.arrival_s)
    began_s = rows[0].arrival_s if rows else 0.0
    return [msgspec.structs.replace(row, arrival_s=round(row.arrival_s - began_s, 3)) for row in rows]


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, str] | bytes]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for line in reader:
            yield reader.line_num, {name: value for name, value in line.items() if value not in ("", None)}


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, str] | bytes]]:
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            yield number, line


_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl}


def _row(path: Path, number: int, line: dict[str, str] | bytes) -> Row:
    try:
        row = (
            msgspec.json.decode(line, type=Row) if isinstance(line, bytes) else msgspec.convert(line, Row, strict=False)
        )
    except (msgspec.DecodeError, TypeError) as error:
        known = ", ".join(Row.__struct_fields__)
        raise TraceError(f"{path}, line {number}: {error}. The fields are {known}.") from None
    for field, value in (("tenant", row.tenant), ("prefix", row.prefix or "none")):
        if not NAME.fullmatch(value):
            raise TraceError(f"{path}, line {number}: {field} is {value!r}; it is 1 to 128 of A-Z a-z 0-9 _ . : @ -")
    return row
