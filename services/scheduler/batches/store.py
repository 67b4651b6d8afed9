"""The object store as a batch sees it: its input, its segments, and the files that these add up to."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from shared import keys
from shared.batches import FILES, Batch, file_id_of
from shared.bus.client import Bus
from shared.errors import FileNotFound, HeadraceError, ObjectMissing
from shared.files import Files
from shared.large import object_key
from shared.messages import Stored

PATIENCE_S = 120.0
"""For one piece or one segment. A store that hangs must not hold a batch for ever; its feeder begins again."""
PURPOSE = "batch_output"


class InputGone(HeadraceError):
    """The input file was deleted, or has expired."""


class Store:
    """Methods raise StoreUnavailable and TimeoutError besides what they name."""

    def __init__(self, bus: Bus, files: Files, kept_s: int) -> None:
        """`kept_s`: how long output is kept unless its batch says otherwise, from the end of the window."""
        self._bus, self._files, self._kept_s = bus, files, kept_s

    async def read(self, batch: Batch, start: int = 0, *, over: bool) -> AsyncGenerator[bytes, None]:
        """The input from byte `start`, in pieces. `over`: nothing more of it is going to be done.

        Raises: InputGone; ObjectMissing while the store has lost what there should be, which is waited for unless it is over.
        """
        try:
            async with aclosing(self._files.read(batch.input_file_id, start)) as pieces:
                while True:
                    async with asyncio.timeout(PATIENCE_S):
                        piece = await anext(pieces, None)
                    if piece is None:
                        return
                    yield piece
        except FileNotFound as error:
            raise InputGone(str(error)) from None
        except ObjectMissing as error:
            if not over:
                raise
            raise InputGone(str(error)) from None

    async def put(self, batch: Batch, segment: str, contents: Mapping[str, bytes]) -> None:
        """`contents`: by kind of file; an empty one is left out."""
        async with asyncio.timeout(PATIENCE_S):
            for kind, data in contents.items():
                if data:
                    await self._files.objects.put(_key(batch, kind, segment), data)

    async def answer(self, task_id: str, stored: Stored) -> bytes:
        """One that was too large for Redis. Raises: ObjectMissing."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._files.objects.get(object_key(task_id, stored))

    async def file(self, batch: Batch, kind: str, segment: str, size: int) -> None:
        """The segment is part of its file; harmless when repeated."""
        key, file_id = _key(batch, kind, segment), file_id_of(batch.id, kind)
        try:
            await self._files.append_part(file_id, key, size)
        except FileNotFound:
            name, left_ms = f"{batch.id}_{kind}.jsonl", batch.expires_at_ms - await self._bus.time_ms()
            kept_s = max(0, left_ms) // 1000 + (batch.output_kept_s or self._kept_s)
            await self._files.create(batch.tenant, name, PURPOSE, file_id=file_id, kept_s=kept_s)
            await self._files.append_part(file_id, key, size)

    async def tidy(self, batch: Batch) -> None:
        """The files are whole; segments that belong to none are deleted: their holder died before it could name them."""
        named: set[str] = set()
        for kind in FILES:
            file_id = file_id_of(batch.id, kind)
            try:
                await self._files.finish(file_id)
            except FileNotFound:  # there was nothing to say, or somebody has deleted it
                continue
            parts = await self._bus.read("ZRANGE", keys.file_parts(file_id), 0, -1)
            named |= {part.decode() for part in parts}
        async with asyncio.timeout(PATIENCE_S):
            orphans = [key async for key in self._files.objects.list(_folder(batch)) if key not in named]
            await self._files.objects.delete(*orphans)


def _folder(batch: Batch) -> str:
    return f"batches/{batch.id}/"


def _key(batch: Batch, kind: str, segment: str) -> str:
    return f"{_folder(batch)}{segment}.{kind}.jsonl"
