"""The folder of a deployment: `redis/` keeps its tasks over restarts, `objects/` its files, `log/` what its processes said last."""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from services.cli.failure import Failure
from shared.clock import monotonic_s

ORPHAN_S = 10.0
"""How long the Redis of a killed `headrace up` may take to end."""


class Home(Struct, frozen=True):
    folder: Path
    lock: int
    """Open descriptor. Held by us and by our Redis, so that no second one ever opens the same data."""

    @property
    def redis(self) -> Path:
        return self.folder / "redis"

    @property
    def objects(self) -> Path:
        return self.folder / "objects"

    def log(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.log"


def default_folder(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "headrace"


@contextmanager
def claim(folder: Path) -> Iterator[Home]:
    """The folder, ours alone while the block runs. Raises: Failure."""
    try:
        for part in (folder, folder / "redis", folder / "objects", folder / "log"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failure(
            f"the data folder {folder} cannot be used: {error.strerror}. Choose another with --data-dir."
        ) from None
    try:
        _take(lock, folder)
        yield Home(folder, lock)
    finally:
        os.close(lock)


def _take(lock: int, folder: Path) -> None:
    give_up_at_s = monotonic_s() + ORPHAN_S
    while not _locked(lock):
        owner = os.pread(lock, 20, 0).decode()
        if _alive(owner) or monotonic_s() > give_up_at_s:
            raise Failure(
                f"another `headrace up` (process {owner or 'unknown'}) uses {folder}.\n"
                "Stop it first, or give this one a folder of its own: --data-dir, and ports: --port 0 --ws-port 0."
            )
        time.sleep(0.05)
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _alive(owner: str) -> bool:
    try:
        os.kill(int(owner), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
