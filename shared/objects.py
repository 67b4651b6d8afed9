"""The object store: what is too large for Redis. A folder, or a bucket that speaks S3.

An object is written whole or not at all and never changed, so it may be read by ranges, by anybody, at any time. Reading is a
request for each piece and holds no connection between them: a slow client costs nothing at the store, and no time limit of it.

In a folder, a write is on the disk (fsync) when it is acknowledged, and a writer that was killed leaves a hidden part, which
`forget_parts` removes. Of a bucket both is the store's own business: it keeps what it has acknowledged, and its lifecycle rules
remove uploads that were never completed.

The folder is made at the start, and never again: one that is gone later, or lies below another mount, was unmounted, and what went
there would be hidden by the next mount. Mounts are told apart by their places, not by the numbers of their file systems: a network
file system may have another one after each mount.
"""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store
from prometheus_client import Counter, Histogram

from shared.clock import now_ms
from shared.errors import ConfigError, ObjectMissing, StoreUnavailable
from shared.settings import mask

PIECE_BYTES = 1024 * 1024
"""Of one read: a request takes some milliseconds at a bucket, and so many bytes are in memory for each reader."""
PART_BYTES = 5 * 1024 * 1024
"""Of one part of a long write: the least that S3 takes. Two of them are on their way at once."""
PARTS_AT_ONCE = 2
DELETES_AT_ONCE = 16
PATIENCE = timedelta(seconds=10)
"""How long a request to a bucket is repeated. Callers that can wait longer come again by themselves."""
REASON_LENGTH = 300
SERVER_SAYS = re.compile(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>")
"""Of an S3 server."""
UNFINISHED = re.compile(r".+#\d+")
"""The name of a hidden part in a folder."""

SECONDS = Histogram("hr_object_seconds", "Of a call to the object store", ("operation",),
                    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30))  # fmt: skip
FAILURES = Counter("hr_object_failures_total", "Calls that the object store failed or refused", ("operation",))
BYTES = Counter("hr_object_bytes_total", "Written to the object store and read from it", ("direction",))

Found = TypeVar("Found")


class Objects:
    """Keys are paths without a leading slash. Credentials, endpoint and region of a bucket are those of the usual AWS_* variables."""

    def __init__(self, url: str) -> None:
        """`url`: file:///folder, which is made if it is missing, or s3://bucket/prefix. Raises: ConfigError."""
        self.url, self._folder = mask(url), _folder(url)
        try:
            self._store = LocalStore(self._folder, automatic_cleanup=True, mkdir=True) if self._folder else _bucket(url)
            self._mount = _mount_of(self._folder) if self._folder else None
        except (BaseError, OSError, ValueError) as error:
            raise ConfigError(f"HEADRACE_OBJECTS is {self.url!r}: {_reason(error)}") from None

    async def put(self, key: str, data: bytes) -> None:
        """Raises: StoreUnavailable."""
        with self._faults("put"):
            await self._put(key, data)
        BYTES.labels("written").inc(len(data))

    async def write(self, key: str, pieces: AsyncIterator[bytes]) -> int:
        """Bytes written. What `pieces` raises is raised, and nothing is left behind. Raises: StoreUnavailable."""
        source = _Source(pieces)
        with self._faults("write", source):
            await self._put(key, source.pieces())
        BYTES.labels("written").inc(source.size)
        return source.size

    async def get(self, key: str) -> bytes:
        """Raises: ObjectMissing, StoreUnavailable."""
        with self._faults("get"):
            found = await self._found(key, obstore.get_async(self._store, key))
            data = bytes(await found.bytes_async())
        BYTES.labels("read").inc(len(data))
        return data

    async def read(self, key: str, start: int = 0, *, size: int | None = None) -> AsyncGenerator[bytes, None]:
        """In pieces. `size`: its bytes; None: the store is asked. Raises: ObjectMissing, StoreUnavailable."""
        size = await self.size(key) if size is None else size
        while start < size:
            end = min(size, start + PIECE_BYTES)
            with self._faults("read"):
                data = bytes(await self._found(key, obstore.get_range_async(self._store, key, start=start, end=end)))
            BYTES.labels("read").inc(len(data))
            yield data
            start = end

    async def size(self, key: str) -> int:
        """Bytes. Raises: ObjectMissing, StoreUnavailable."""
        with self._faults("size"):
            return int((await self._found(key, obstore.head_async(self._store, key)))["size"])

    async def delete(self, *keys: str) -> None:
        """Harmless for what is not there. Raises: StoreUnavailable."""
        for first in range(0, len(keys), DELETES_AT_ONCE):
            await asyncio.gather(*(self._delete(key) for key in keys[first : first + DELETES_AT_ONCE]))

    async def list(self, prefix: str) -> AsyncGenerator[str, None]:
        """Keys below a path, such as `batches/x/`, in no order. Raises: StoreUnavailable."""
        with self._faults("list"):
            async for page in obstore.list(self._store, prefix=prefix, chunk_size=1000):
                for found in page:
                    yield found["path"]

    async def forget_parts(self, older_s: float) -> int:
        """Remove what killed writers left in the folder so long ago; how many. Raises: StoreUnavailable."""
        with self._faults("sweep"):
            return await asyncio.to_thread(_forget_parts, self._folder, older_s) if self._folder else 0

    # -- parts

    async def _put(self, key: str, data: "bytes | AsyncGenerator[bytes, None]") -> None:
        await self._check_folder()  # the library would make it anew
        await obstore.put_async(self._store, key, data, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
        if self._folder is not None:
            await asyncio.to_thread(_sync, self._folder, key)

    async def _delete(self, key: str) -> None:
        with self._faults("delete"):
            try:
                await obstore.delete_async(self._store, key)
            except FileNotFoundError:
                await self._check_folder()

    async def _found(self, key: str, answer: Awaitable[Found]) -> Found:
        """A bucket that is not there answers as an object does that is not there; only a list tells them apart."""
        try:
            return await answer
        except FileNotFoundError:
            await self._check_folder()
            if self._folder is None:
                await obstore.list(self._store, chunk_size=1).collect_async()
            raise ObjectMissing(self.url, key) from None

    async def _check_folder(self) -> None:
        """Raises: OSError."""
        if self._folder is not None and await asyncio.to_thread(_mount_of, self._folder) != self._mount:
            raise OSError("the folder lies on another file system than at the start: mount what was there, or restart")

    @contextmanager
    def _faults(self, operation: str, source: "_Source | None" = None) -> Iterator[None]:
        """What the store says becomes an error of ours, and is counted; what the source of a write says stays."""
        try:
            with SECONDS.labels(operation).time():
                yield
        except (BaseError, OSError, ValueError) as error:
            if source is not None and source.fault is not None:
                raise source.fault from None
            FAILURES.labels(operation).inc()
            raise StoreUnavailable(self.url, _reason(error)) from error


class _Source:
    """Counts what goes by, and keeps what went wrong there."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self.size = 0
        self.fault: Exception | None = None

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        try:
            async for piece in self._pieces:
                self.size += len(piece)
                yield piece
        except Exception as error:
            self.fault = error
            raise


def _folder(url: str) -> Path | None:
    """None: it is a bucket. Raises: ConfigError."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and len(parts.path) > 1:
        return Path(unquote(parts.path)).resolve()
    if parts.scheme == "s3" and parts.netloc:
        return None
    raise ConfigError(f"HEADRACE_OBJECTS is {mask(url)!r}; allowed: file:///folder, s3://bucket, s3://bucket/prefix")


def _mount_of(folder: Path) -> Path:
    """The nearest mount above it. Raises: OSError, if there is no folder."""
    folder.stat()
    return next(path for path in (folder, *folder.parents) if path.is_mount())


def _bucket(url: str) -> S3Store:
    return S3Store.from_url(
        url,
        client_options={"allow_http": True, "connect_timeout": timedelta(seconds=5)},
        retry_config={"max_retries": 5, "retry_timeout": PATIENCE},
    )


def _sync(folder: Path, key: str) -> None:
    """Bring an object to the disk, and the folders that lead to it."""
    path = folder / key
    while True:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
        if path == folder:
            return
        path = path.parent


def _forget_parts(folder: Path, older_s: float) -> int:
    old = [
        path
        for path in folder.rglob("*")
        if UNFINISHED.fullmatch(path.name) and path.stat().st_mtime * 1000 < now_ms() - older_s * 1000
    ]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


def _reason(error: Exception) -> str:
    """What the server says, else what the library says first: the rest are its own innards."""
    told = SERVER_SAYS.search(str(error))
    said = f"{told[2]} ({told[1]})" if told is not None else str(error).strip().partition("\n")[0]
    return said[:REASON_LENGTH] or type(error).__name__
