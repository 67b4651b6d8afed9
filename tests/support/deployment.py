"""A whole deployment for tests and benchmarks: `headrace up` in a folder of its own, on free ports."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from tests.support.processes import children, descendants, kill_all, started


class Deployment(Struct):
    http: str
    ws: str
    redis: str
    replicas: dict[str, list[str]]
    """Base URLs of every process, by service."""
    supervisor: int
    folder: Path

    def sockets(self) -> list[str]:
        """WebSocket URLs of the notifier's replicas."""
        return [f"ws{url.removeprefix('http')}/v1/ws" for url in self.replicas["notifier"]]

    def processes(self) -> dict[str, list[int]]:
        """Process ids by service (`redis` included), as they are now."""
        found: dict[str, list[int]] = {}
        for pid in children(self.supervisor):
            words = command_line(pid)
            name = next((word[9:] for word in words if word.startswith("services.")), "")
            if "redis-server" in words[0] or "valkey-server" in words[0]:
                name = "redis"
            if name:
                found.setdefault(name, []).append(pid)
        return found


def rewrite(running: Deployment, config: str) -> None:
    """Its headrace.toml, at once: services look at the file when they like, and one that is half written says something else."""
    fresh = running.folder / "headrace.toml.new"
    fresh.write_text(config)
    fresh.replace(running.folder / "headrace.toml")


def command_line(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return [word.decode(errors="replace") for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    return [""]


@contextlib.contextmanager
def deployment(
    folder: Path,
    *options: str,
    config: str = "",
    redis_url: str = "",
    environ: Mapping[str, str] | None = None,
    timeout_s: float = 120,
) -> Iterator[Deployment]:
    """Raises: AssertionError with the supervisor's own words, if it does not get ready."""
    file = folder / "headrace.toml"
    file.write_text(config)
    command = [
        sys.executable,
        "-m",
        "services.cli",
        "up",
        "--json",
        "--config",
        str(file),
        "--data-dir",
        str(folder / "data"),
    ]
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("HEADRACE_", "REDIS_"))}  # noqa: TID251
    keep |= {"HEADRACE_INGRESS_PORT": "0", "HEADRACE_NOTIFIER_PORT": "0", "XDG_STATE_HOME": str(folder / "state")}
    keep |= environ or {}
    if redis_url:
        keep["REDIS_URL"] = redis_url
    with (folder / "up.log").open("w") as log:
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=log, env=keep, text=True)
    try:
        line = first_line(process, timeout_s)
        assert line, f"headrace up did not get ready:\n{(folder / 'up.log').read_text()[-4000:]}"
        yield Deployment(**json.loads(line), supervisor=process.pid, folder=folder)
    finally:
        stop(process)


def first_line(process: subprocess.Popen[str], timeout_s: float) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], timeout_s)
    return process.stdout.readline() if ready else ""


def stop(process: subprocess.Popen[str], timeout_s: float = 60) -> None:
    below = {pid: started(pid) for pid in descendants(process.pid)} if process.poll() is None else {}
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
    kill_all(pid for pid, at in below.items() if started(pid) == at)  # a number may have been given again


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
