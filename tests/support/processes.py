"""Processes of this machine, seen through /proc."""

from pathlib import Path


def descendants(pid: int) -> list[int]:
    children = [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _fields(stat)[1:2] == [str(pid)]]
    return children + [below for child in children for below in descendants(child)]


def alive(pid: int) -> bool:
    return _fields(Path(f"/proc/{pid}/stat"))[:1] not in ([], ["Z"])


def _fields(stat: Path) -> list[str]:
    """From the state on: a process's name may hold anything. Empty: it has ended."""
    try:
        return stat.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
