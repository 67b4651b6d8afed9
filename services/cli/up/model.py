"""What vLLM needs before it starts. Checked first, because its own messages come late and say little."""

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from services.cli.failure import Failure
from services.cli.up.process import POLL_S, die_with

WORKER_GB = 4
"""Memory of one worker on a CPU: 1.8 GB of processes, 1 GB of KV cache, the rest while it loads."""
LIGHT = "or start without a model: headrace up --engine echo"


async def prepare(sources: set[str], workers: int) -> None:
    """Returns when every model lies in the cache folder. Raises: Failure."""
    if importlib.util.find_spec("vllm") is None:
        raise Failure(f"vLLM is not installed here: `make up` installs it ({LIGHT})")
    check_memory(available_gb(), workers)
    for source in sorted(sources):
        await _prepare(source)


def check_memory(available: float | None, workers: int) -> None:
    """Raises: Failure."""
    needed = WORKER_GB * workers
    if available is not None and available < needed:
        raise Failure(
            f"{available:.1f} GB of memory are free, {workers} vLLM worker{'s need' if workers > 1 else ' needs'} about "
            f"{needed} GB.\nClose other programs, or ask for fewer workers (--replicas inference=1), {LIGHT}"
        )


def available_gb() -> float | None:
    """Free memory, of the machine or of the container, whichever is less; None where it cannot be told."""
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    free = [int(match[1]) * 1024] if match else []
    return min([*free, *_free_of_container()], default=0) / 1e9


def _free_of_container() -> list[int]:
    """Bytes, by cgroup v2; nothing if there is no limit. Cached files count as free: the kernel drops them first."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        return []
    return [int(limit) - used + (int(cached[1]) if cached else 0)] if limit.isdigit() else []


async def _prepare(source: str) -> None:
    """In a process of its own: the converter's memory goes with it."""
    argv = [sys.executable, "-m", "services.inference.models", source]
    child = subprocess.Popen(  # noqa: ASYNC220  polled below
        argv, stdout=subprocess.DEVNULL, process_group=0, preexec_fn=die_with(os.getpid())
    )
    try:
        while child.poll() is None:
            await asyncio.sleep(POLL_S)
    finally:
        child.terminate()
        child.wait()
    if child.returncode:
        raise Failure(f"the model {source} could not be prepared; the reason is told above")
