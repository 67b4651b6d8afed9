"""The command line as a user runs it: a process, its words, its exit code."""

import fcntl
import os
import resource
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import redis
from tests.support.deployment import Deployment, deployment
from tests.support.ports import free_port
from tests.support.waiting import wait_blocking


class Shell:
    """Runs `headrace`, with nothing of this machine's own settings or state."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HEADRACE_", "REDIS_"))}  # noqa: TID251
        self._environ = {**kept, "XDG_STATE_HOME": str(folder), **environ}

    @contextmanager
    def start(
        self,
        *arguments: str,
        terminal: int | None = None,
        stdin: int = subprocess.DEVNULL,
        file_bytes: int = resource.RLIM_INFINITY,
        **environ: str,
    ) -> Iterator[subprocess.Popen[str]]:
        """A process that is stopped at the end of the block, if it has not ended before.

        `terminal`: the descriptor of one that is to be its own. `file_bytes`: the largest file that it may write.
        """

        def prepare() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))
            if terminal is not None:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", *arguments],
            env=self._environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=stdin if terminal is None else terminal,
            text=True,
            start_new_session=terminal is not None,
            preexec_fn=None if terminal is None and file_bytes == resource.RLIM_INFINITY else prepare,
        )
        with process:
            try:
                yield process
            finally:
                process.terminate()

    def run(
        self,
        *arguments: str,
        stdin: int = subprocess.DEVNULL,
        file_bytes: int = resource.RLIM_INFINITY,
        **environ: str,
    ) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments, terminal=None, stdin=stdin, file_bytes=file_bytes, **environ) as process:
            out, err = process.communicate(timeout=100)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def processes(self) -> list[int]:
        """Everything that still runs of what was started here."""
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._is_ours(entry)]

    def _is_ours(self, process: Path) -> bool:
        """By its environment, or, for a Redis, which overwrites that, by its working folder."""
        try:
            mark = f"XDG_STATE_HOME={self.folder}\0".encode()
            return mark in (process / "environ").read_bytes() or self.folder in (process / "cwd").readlink().parents
        except OSError:
            return False


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    wait_blocking(lambda: not shell.processes(), "no process is left", timeout_s=60)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One of each service, with the echo engine."""
    with deployment(tmp_path_factory.mktemp("echo"), "--engine", "echo") as running:
        yield running


@pytest.fixture
def client(running: Deployment, tmp_path: Path) -> Shell:
    """A command line whose HEADRACE_URL is that of `running`."""
    return Shell(tmp_path, HEADRACE_URL=running.http)


@contextmanager
def redis_with(folder: Path, *options: str) -> Iterator[str]:
    """The URL of a Redis with settings of its own."""
    port = free_port()
    argv = [
        redis.find_server(),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(folder),
        *options,
    ]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as server:
        try:
            url = f"redis://127.0.0.1:{port}"
            wait_blocking(lambda: redis.answers(url), f"redis-server answers at {url}")
            yield url
        finally:
            server.kill()
