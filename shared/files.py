"""Files as clients of the OpenAI API know them: a record in Redis, and content in the object store, which is its parts in order.

An upload has one part; the output of a batch gets one for each of its segments, so it can be read while it grows. A part is
filed under the place of its first byte, so reading from anywhere needs no more than the parts from there on.

More than one slot, so nothing here is atomic over all of it. First a file stands in the index of what expires, then comes its
content, then its record, then its place in the list of its tenant. Whatever was begun and left is found by that first entry:
services/scheduler/file_sweep.py completes it if there is a record, and removes it if not. Deleting marks the record first, so
that the file is gone for everybody at once, and takes the entry away last.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

import msgspec
from msgspec import Struct

from shared import keys
from shared.bus.client import Bus
from shared.bus.connection import Arg, Reply
from shared.bus.script import Script
from shared.clock import now_ms
from shared.errors import FileNotFound, HeadraceError, NoObjectStore, WrongKeyType
from shared.objects import Objects

MAKE = Script("shared", "file_make")
APPEND = Script("shared", "file_append")
MARK = Script("shared", "file_mark")

UPLOADED, PROCESSED = "uploaded", "processed"
"""Statuses of a file, as the OpenAI API names them: it still grows, or it is whole."""

BEGUN_MS = 24 * 3600 * 1000
"""How long an upload may take. Until then what it has stored belongs to nobody, so afterwards it is removed."""
PARTS_READ = 100
"""Parts whose places are asked for at once."""
PAGE = 1000

_ID = re.compile(r"file-[0-9a-f]{32}")
_TEXTS = ("tenant", "purpose", "filename", "status", "details")
_NUMBERS = ("bytes", "lines", "created_at_ms", "expires_at_ms")


class File(Struct, frozen=True, kw_only=True):
    id: str
    tenant: str
    purpose: str
    filename: str
    bytes: int
    lines: int
    """Those that are not empty; of a file whose lines were not counted, 0."""
    status: str
    details: str
    """What was found wrong with its lines, as far as somebody looked."""
    created_at_ms: int
    expires_at_ms: int
    """Unix milliseconds; from then on it is gone."""

    @property
    def gone(self) -> bool:
        return self.expires_at_ms <= now_ms()


class Files:
    """Every method raises BusError besides what it names."""

    def __init__(self, bus: Bus, objects: Objects | None, kept_s: int) -> None:
        """`kept_s`: how long a file is kept unless it says otherwise, from its creation."""
        self._bus, self._objects, self._kept_s = bus, objects, kept_s

    @property
    def objects(self) -> Objects:
        """Raises: NoObjectStore."""
        if self._objects is None:
            raise NoObjectStore
        return self._objects

    async def begin(self, file_id: str) -> None:
        """Before its first byte is stored: what is stored and never becomes a file is removed in the end."""
        await self._bus.commands.call("ZADD", keys.FILES, "NX", now_ms() + BEGUN_MS, file_id)

    async def create(
        self,
        tenant: str,
        filename: str,
        purpose: str,
        *,
        file_id: str = "",
        kept_s: int = 0,
        status: str = UPLOADED,
        part: str = "",
        size: int = 0,
        lines: int = 0,
        details: str = "",
    ) -> File:
        """`file_id`: empty: a new one; if there is such a file, it is answered as it is. `kept_s` 0: as long as others.

        `part`: key of the object with its content, of `size` bytes; a file of none grows by `append_part`.
        Raises: WrongKeyType, FileNotFound if it was there and has expired.
        """
        file_id = file_id or new_file_id()
        fields = {"tenant": tenant, "purpose": purpose, "filename": filename, "status": status, "details": details}
        await self.begin(file_id)
        first = part if size else ""
        await make(self._bus, file_id, kept_s or self._kept_s, first, {**fields, "bytes": size, "lines": lines})
        made = await self.get(file_id)
        await self.enter(made)
        return made

    async def enter(self, file: File) -> None:
        """Into the indexes."""
        await self._bus.commands.call("ZADD", keys.FILES, file.expires_at_ms, file.id)
        await self._bus.commands.call("ZADD", keys.files_of(file.tenant), file.created_at_ms, file.id)

    async def get(self, file_id: str) -> File:
        """Raises: FileNotFound."""
        file = await self.record(file_id)
        if file is None or file.gone:
            raise FileNotFound(file_id)
        return file

    async def record(self, file_id: str) -> File | None:
        """As it is written, though it may have expired."""
        if _ID.fullmatch(file_id) is None:
            return None
        return parse(file_id, await self._bus.read("HMGET", keys.file(file_id), *_TEXTS, *_NUMBERS))

    async def list(
        self, tenant: str, *, after: str = "", limit: int = PAGE, purpose: str = "", newest_first: bool = True
    ) -> Sequence[File]:
        """The files of a tenant behind the file `after`. Raises: FileNotFound for that one."""
        index, first = keys.files_of(tenant), 0
        rank, pages = ("ZREVRANK", "ZREVRANGE") if newest_first else ("ZRANK", "ZRANGE")
        if after:
            place = await self._bus.read(rank, index, after)
            if place is None:
                raise FileNotFound(after)
            first = int(place) + 1
        found: list[File] = []
        while len(found) < limit:
            page = await self._bus.read(pages, index, first, first + min(PAGE, limit) - 1)
            records = await asyncio.gather(*(self.record(file_id.decode()) for file_id in page))
            there = [file for file in records if file is not None and not file.gone]
            found += [file for file in there if purpose in ("", file.purpose)]
            if len(page) < min(PAGE, limit):
                break
            first += len(page)
        return found[:limit]

    async def append_part(self, file_id: str, key: str, size: int, lines: int = 0) -> None:
        """The object `key` is the next part of the file, once; an empty one is none. Raises: FileNotFound, WrongKeyType."""
        if await append(self._bus, file_id, key, size, lines) == "unknown":
            raise FileNotFound(file_id)

    async def finish(self, file_id: str) -> None:
        """It is whole. Raises: FileNotFound, WrongKeyType."""
        if await mark(self._bus, file_id, {"status": PROCESSED}) == "unknown":
            raise FileNotFound(file_id)

    async def read(self, file_id: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        """What the file has as it is read, from byte `start`.

        Raises: FileNotFound, NoObjectStore, StoreUnavailable, ObjectMissing if it was deleted meanwhile.
        """
        await self.get(file_id)
        more = True
        while more:
            parts, more = await self._parts_from(file_id, start)
            for key, first in parts:
                async with aclosing(self.objects.read(key, start - first)) as pieces:
                    async for piece in pieces:
                        yield piece
                        start += len(piece)

    async def _parts_from(self, file_id: str, start: int) -> tuple[Sequence[tuple[str, int]], bool]:
        """The part that has the byte `start` and those behind it, with the places of their first bytes; are there more?"""
        parts = keys.file_parts(file_id)
        here = await self._bus.read("ZREVRANGEBYSCORE", parts, start, "-inf", "WITHSCORES", "LIMIT", 0, 1)
        behind = await self._bus.read("ZRANGEBYSCORE", parts, f"({start}", "+inf", "WITHSCORES", "LIMIT", 0, PARTS_READ)
        flat = [*here, *behind]
        places = [(key.decode(), int(float(place))) for key, place in zip(flat[::2], flat[1::2], strict=True)]
        return places, len(behind) == 2 * PARTS_READ

    async def delete(self, file_id: str) -> None:
        """Raises: FileNotFound, NoObjectStore, WrongKeyType; StoreUnavailable, and then the sweep does the rest."""
        _ = self.objects
        await self.get(file_id)
        if await mark(self._bus, file_id, {"expires_at_ms": 1}) == "unknown":
            raise FileNotFound(file_id)
        await self._bus.commands.call("ZADD", keys.FILES, 1, file_id)
        await self.remove(file_id)

    async def remove(self, file_id: str) -> None:
        """All of it, whatever there is; a repeat goes on where the last one stopped. Raises: NoObjectStore, StoreUnavailable."""
        file, parts = await self.record(file_id), keys.file_parts(file_id)
        await self.objects.delete(upload_key(file_id))
        while page := await self._bus.commands.call("ZRANGE", parts, 0, PARTS_READ - 1):
            await self.objects.delete(*(key.decode() for key in page))
            await self._bus.commands.call("ZREM", parts, *page)
        await self._bus.commands.call("UNLINK", keys.file(file_id), parts)
        if file is not None:
            await self._bus.commands.call("ZREM", keys.files_of(file.tenant), file_id)
        await self._bus.commands.call("ZREM", keys.FILES, file_id)


def new_file_id() -> str:
    return f"file-{secrets.token_hex(16)}"


def upload_key(file_id: str) -> str:
    """Where the content of an upload lies in the object store."""
    return f"files/{file_id}"


async def make(bus: Bus, file_id: str, kept_s: int, part: str, fields: Mapping[str, Arg]) -> str:
    """The twin of file_make.lua. Raises: WrongKeyType."""
    return await _run(bus, MAKE, [keys.file(file_id), keys.file_parts(file_id)], [kept_s * 1000, part, *_flat(fields)])


async def append(bus: Bus, file_id: str, part: str, size: int, lines: int) -> str:
    """The twin of file_append.lua. Raises: WrongKeyType."""
    return await _run(bus, APPEND, [keys.file(file_id), keys.file_parts(file_id)], [part, size, lines])


async def mark(bus: Bus, file_id: str, fields: Mapping[str, Arg]) -> str:
    """The twin of file_mark.lua. Raises: WrongKeyType."""
    return await _run(bus, MARK, [keys.file(file_id)], _flat(fields))


async def _run(bus: Bus, script: Script, names: Sequence[str], args: Sequence[Arg]) -> str:
    verdict: str = (await bus.run(script, names, args, durable=True)).decode()
    if verdict.startswith("wrongtype"):
        raise WrongKeyType(f"the key {verdict.partition(' ')[2]} holds a type that is not Headrace's; remove it")
    return verdict


def _flat(fields: Mapping[str, Arg]) -> Sequence[Arg]:
    return [part for pair in fields.items() for part in pair]


def parse(file_id: str, values: Sequence[Reply]) -> File | None:
    """The answer to HMGET of the fields. Raises: HeadraceError for a hash that is not ours."""
    if values[0] is None:
        return None
    try:
        said = {name: value.decode() for name, value in zip((*_TEXTS, *_NUMBERS), values, strict=True)}
        return msgspec.convert({"id": file_id, **said}, File, strict=False)
    except (AttributeError, ValueError):
        raise HeadraceError(f"the record of the file {file_id} holds what no script of Headrace writes") from None
