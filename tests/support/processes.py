"""Processes of this machine, seen through /proc."""

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path


def children(pid: int) -> list[int]:
    return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _fields(stat)[1:2] == [str(pid)]]


def descendants(pid: int) -> list[int]:
    below = children(pid)
    return below + [deeper for child in below for deeper in descendants(child)]


def kill_all(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def started(pid: int) -> str:
    """When, in the kernel's ticks: with the number it is the identity of a process. Empty: it has ended."""
    return "".join(_fields(Path(f"/proc/{pid}/stat"))[19:20])


def alive(pid: int) -> bool:
    return _fields(Path(f"/proc/{pid}/stat"))[:1] not in ([], ["Z"])


def holder_of_port(port: int) -> int:
    """The process whose end of a TCP connection has this local port. Raises: LookupError."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    inodes = {fields[9] for line in lines if (fields := line.split())[1].endswith(f":{port:04X}")}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(link.readlink()).removeprefix("socket:[").removesuffix("]") in inodes:
                return int(link.parts[2])
    raise LookupError(port)


def _fields(stat: Path) -> list[str]:
    """From the state on: a process's name may hold anything. Empty: it has ended."""
    try:
        return stat.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
