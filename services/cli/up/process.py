"""A child process: started so that it cannot outlive us, ready when it says so, stopped with grace."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

POLL_S = 0.02
"""Between looks at a child. Polling needs no threads, so a fork is safe at any time; five looks at 50/s cost nothing."""
LAST_LINES = 15
"""Of a log, shown when its process ended on its own."""

_libc = ctypes.CDLL(None)
_SET_DEATH_SIGNAL = 1


class Program(Struct, frozen=True, kw_only=True):
    """What to run, and how to know that it is ready."""

    service: str
    name: str
    argv: list[str]
    environ: Mapping[str, str]
    log: Path
    keep_fds: tuple[int, ...] = ()
    """Inherited by the process, under the same numbers."""
    answers: Callable[[], Awaitable[bool]] | None = None
    """Whether it serves; None: it announces itself on HEADRACE_READY_FD."""


class Process:
    """One run of a program. Its output goes to its log."""

    def __init__(self, program: Program) -> None:
        """Starts it. Raises: OSError."""
        self.program = program
        self._ready, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with program.log.open("ab") as log:
                self._child = subprocess.Popen(
                    program.argv,
                    env={**program.environ, "HEADRACE_READY_FD": str(write_end), "HEADRACE_DIE_WITH_PARENT": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(write_end, *program.keep_fds),
                    process_group=0,  # Ctrl-C reaches us alone; we stop the others in order
                    preexec_fn=die_with(os.getpid()),
                )
        except BaseException:
            os.close(self._ready)
            raise
        finally:
            os.close(write_end)
        self._announced = b""

    @property
    def pid(self) -> int:
        return self._child.pid

    async def ready(self) -> str | None:
        """The URL at which it serves ("" if it has none to tell); None: it ended before."""
        while True:
            ended = self._child.poll() is not None
            if (url := await self._told()) is not None:
                return url
            if ended:
                return None
            await asyncio.sleep(POLL_S)

    async def _told(self) -> str | None:
        if self.program.answers is not None:
            return "" if await self.program.answers() else None
        return self._announcement()

    def _announcement(self) -> str | None:
        try:
            self._announced += os.read(self._ready, 4096)
        except BlockingIOError:
            return None
        if not self._announced.endswith(b"\n"):
            return None
        return str(msgspec.json.decode(self._announced)["url"])

    async def ended(self) -> str:
        """How it ended, in words."""
        while (code := self._child.poll()) is None:
            await asyncio.sleep(POLL_S)
        self._forget()
        return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

    def hang_up(self) -> None:
        """SIGHUP, which has a service read its configuration anew."""
        self._child.send_signal(signal.SIGHUP)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL for what is left after `grace_s`."""
        if self._child.poll() is None:
            self._child.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await self.ended()
        except TimeoutError:
            self.kill()
            await self.ended()

    def kill(self) -> None:
        """At once, with everything it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)

    def _forget(self) -> None:
        """Leave nothing of an ended process: neither children of its own nor its pipe."""
        self.kill()
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1

    def last_lines(self) -> str:
        lines = self.program.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join(f"    {line}" for line in lines)


def die_with(parent: int) -> Callable[[], None]:
    """For a child to run before its program: the kernel sends it SIGTERM when `parent` ends, even by SIGKILL (Linux)."""

    def prepare() -> None:
        if sys.platform == "linux":
            _libc.prctl(_SET_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)

    return prepare
