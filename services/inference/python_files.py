"""Files of the python engine: those that a body names by their ids, and those that a callable makes.

A callable has neither Redis nor the object store: the engine reads what a body names before the callable is called, and keeps
what it made as a file afterwards. So whose files these may be is decided here, once, and for every callable.
"""

import asyncio
import hashlib
import re
from contextlib import aclosing

from msgspec import Struct

from services.inference.engine import Call
from services.inference.python_frames import File, Value, file
from shared.errors import FileNotFound, InvalidRequest, NoObjectStore
from shared.files import PROCESSED, Files, upload_key
from shared.routes import other_than_json

MOST_FILES = 100
"""That a body may name. Each is looked up in Redis, one after the other."""
PURPOSE = "user_data"
"""Of a file that a callable made."""
NAMED = re.compile(rb'"(file-[0-9a-f]{32})"(?<!\\.{39})(?!\s*:)')
"""A string of JSON that is the id of a file, and neither the end of a longer one nor the name of a field. It begins with what it
looks for, and looks back afterwards: so `re` passes over the rest at a gigabyte a second, not at some megabytes."""


class Kept(Struct, frozen=True, kw_only=True, tag_field="object", tag="file"):
    """The answer in place of a file. Times are Unix seconds."""

    id: str
    bytes: int
    filename: str
    content_type: str
    created_at: int
    expires_at: int


async def named_files(call: Call, limit_bytes: int) -> dict[str, File]:
    """The files that a body of JSON names, by their ids.

    Raises: FileNotFound if one is not the tenant's, InvalidRequest if they are too many or too large, NoObjectStore,
    StoreUnavailable, ObjectMissing, BusError.
    """
    ids: dict[str, None] = {}
    if not other_than_json(call.content_type):
        ids = dict.fromkeys(found[1].decode() for found in NAMED.finditer(call.body))
    if len(ids) > MOST_FILES:
        raise InvalidRequest(f"The body names {len(ids)} files; at most {MOST_FILES} are read for one task.")
    found: dict[str, File] = {}
    for id in ids:
        left_bytes = limit_bytes - sum(len(file.data) for file in found.values())
        found[id] = await _read(_files(call), call.tenant, id, left_bytes, limit_bytes)
    return found


async def _read(files: Files, tenant: str, file_id: str, left_bytes: int, limit_bytes: int) -> File:
    _ = files.objects  # without a store no id can be of a file
    record = await files.get(file_id)
    if record.tenant != tenant:
        raise FileNotFound(file_id)
    if record.bytes > left_bytes:
        raise InvalidRequest(
            f"The file {file_id} has {record.bytes} bytes; the files of a task may have {limit_bytes} together (python.files_mb)."
        )
    read, size = [], 0
    async with aclosing(files.read(file_id)) as pieces:
        async for piece in pieces:
            read.append(piece)
            size += len(piece)
            if size >= record.bytes:  # one that grows is read as far as it was
                break
    return file(record.filename, "", b"".join(read)[: record.bytes])


async def keep(call: Call, made: Value) -> Kept:
    """A file of the task's tenant, kept as long as others.

    Its id follows from the task and the content: what another attempt makes again is the same file, and what an attempt makes
    otherwise, while an older one is still at it, does not change that one's. Raises: NoObjectStore, StoreUnavailable, BusError.
    """
    files = _files(call)
    store, file_id = files.objects, await asyncio.to_thread(_id_for, call, made.body)
    key = upload_key(file_id)
    await files.begin(file_id)
    await store.put(key, made.body)
    record = await files.create(
        call.tenant, made.filename, PURPOSE, file_id=file_id, status=PROCESSED, part=key, size=len(made.body)
    )
    return Kept(
        id=record.id,
        bytes=record.bytes,
        filename=record.filename,
        content_type=made.content_type,
        created_at=record.created_at_ms // 1000,
        expires_at=record.expires_at_ms // 1000,
    )


def _id_for(call: Call, data: bytes) -> str:
    """The tenant counts too: another one may have had a task with that id."""
    digest = hashlib.sha256(f"{call.tenant}\0{call.task_id}\0".encode())
    digest.update(data)
    return f"file-{digest.hexdigest()[:32]}"


def _files(call: Call) -> Files:
    """Raises: NoObjectStore."""
    if call.files is None:
        raise NoObjectStore
    return call.files
