"""The engine's side of one process of the python engine: its start, what it runs, its limits of time and memory, its end.

The process is a new interpreter, so it shares no socket, lock or thread with this one, and leads a process group, which ends
with it. Memory is watched, not limited by the kernel: native libraries reserve far more address space than they use (CUDA some
ten times the memory of the GPU), so RLIMIT_AS would refuse what is harmless, and a callable cannot be expected to survive a
failed allocation anyway.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from services.inference.python_batches import Job
from services.inference.python_frames import (
    Begun,
    Broken,
    Cancel,
    Done,
    Fault,
    Order,
    Piece,
    Ready,
    Report,
    Unready,
    Work,
    frame,
    read_frame,
    reports,
)
from services.inference.python_output import log_lines
from shared.engine_options import PythonOptions
from shared.errors import UNDECODABLE, HeadraceError

log = logging.getLogger(__name__)

CHILD = "services.inference.python_child"
GRACE_S = 1.0
"""For an async callable to end when it is cancelled, and for a process to end when it is told to. Longer makes calls in a blocked
process wait, shorter kills processes that would have gone on."""
LOOK_S = 0.1
"""Between two looks at the memory. A callable can take a gigabyte in so long."""

Event = Callable[["Process", Job, Piece | Done | Broken], None]


class CannotLoad(HeadraceError):
    """A process has not come so far that it could be given work. The message says why, with its own words."""


class Process:
    def __init__(self, options: PythonOptions, name: str, environ: Mapping[str, str], on_report: Event) -> None:
        self._options, self._environ, self._on_report = options, environ, on_report
        self.name = name
        self.jobs: dict[int, Job] = {}
        """What it runs; after its end, what it took with it."""
        self.begun: set[int] = set()
        """Of `jobs`, those that it has read."""
        self.done = 0
        """Jobs it has ended."""
        self.fate = Fault(500, "", "callable_died")
        """Why it has ended; without a message, by itself."""
        self.is_async = False
        self._started = self._ready = self._killed = False
        self._number = 0
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._late: set[int] = set()

    # -- life

    async def start(self) -> None:
        """Return when the callable is loaded. Raises: CannotLoad, and then nothing is left running."""
        try:
            await self._spawn()
        except OSError as error:
            raise CannotLoad(f"no process can be started: {error}") from None
        self._started = True
        self._beside = [asyncio.create_task(log_lines(self._output, self.name))]
        if self._options.memory_mb:
            self._beside.append(asyncio.create_task(self._watch_memory()))
        try:
            await self._load()
        except BaseException:
            await self.end()
            raise

    async def _spawn(self) -> None:
        """Standard input is our connection, output a pipe of our own: asyncio's would keep `wait` until all who have it close it,
        and so may processes that outlive this one. Raises: OSError.
        """
        mode = "batched" if self._options.batch_size > 1 else "single"
        with contextlib.ExitStack() as theirs:
            ours, link = socket.socketpair()
            theirs.enter_context(link)
            out, written = os.pipe()
            theirs.callback(os.close, written)
            self._output, reading = asyncio.StreamReader(), asyncio.get_running_loop().connect_read_pipe
            self._pipe, _ = await reading(lambda: asyncio.StreamReaderProtocol(self._output), os.fdopen(out, "rb"))
            self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-u", "-m", CHILD, self._options.callable, self._options.path, mode,
                    stdin=link.fileno(), stdout=written, stderr=written, env=dict(self._environ), start_new_session=True,
                )  # fmt: skip
            except BaseException:
                await self._close()
                raise

    async def _load(self) -> None:
        try:
            async with asyncio.timeout(self._options.load_s):  # wait_for loses a cancellation of that moment
                data = await read_frame(self._reader)
        except TimeoutError:
            raise CannotLoad(f"it has not loaded within {self._options.load_s:g} s (python.load_s)") from None
        match reports.decode(data) if data is not None else None:
            case Ready(is_async=is_async):
                self.is_async, self._ready = is_async, True
            case Unready(why=why):
                raise CannotLoad(why)
            case _:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(GRACE_S):
                        await self._process.wait()
                raise CannotLoad(self.why)

    async def serve(self) -> None:
        """Pass on what the process reports, until its end. Afterwards `jobs` are those that it took with it."""
        reading, ending = asyncio.create_task(self._read()), asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait([reading, ending], return_when=asyncio.FIRST_COMPLETED)
            self._kill()  # it may have closed its socket only; and what it has started goes with it
            await ending
            await asyncio.wait([reading], timeout=GRACE_S)  # what it said before its end counts
        finally:
            reading.cancel()
            ending.cancel()
            await self.end()

    async def stop(self) -> None:
        """Let it end by itself, within a moment, so that it can close what it has open. `serve` notices."""
        if not self._ready:
            return
        self._ready = False
        with contextlib.suppress(OSError, RuntimeError):  # it has ended already
            self._writer.write_eof()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), GRACE_S)
        self._kill()

    async def end(self) -> None:
        """At once, and leave nothing of it."""
        if self._started:
            self._kill()
            await self._bury()

    def _kill(self) -> None:
        if not self._killed:
            self._killed, self._ready = True, False
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _bury(self) -> None:
        """The process is dead: leave no task, timer or socket of it."""
        await self._process.wait()
        await asyncio.wait(self._beside[:1], timeout=GRACE_S)  # its last words; what it has started may hold the pipe
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        for timer in self._timers.values():
            timer.cancel()
        await self._close()

    async def _close(self) -> None:
        self._pipe.close()
        self._writer.close()
        with contextlib.suppress(
            ConnectionError
        ):  # shielded: who is cancelled here would cancel it for all who come after
            await asyncio.shield(self._writer.wait_closed())

    @property
    def why(self) -> str:
        """It has ended: of what."""
        code = self._process.returncode
        if self.fate.message or code is None:
            return self.fate.message or "it closed its connection"
        with contextlib.suppress(ValueError):
            return f"it was killed by {signal.Signals(-code).name}"
        return f"it ended with exit code {code}"

    # -- work

    @property
    def room(self) -> bool:
        alone = any(job.alone for job in self.jobs.values())
        return self._ready and not alone and len(self.jobs) < self._options.concurrency

    def send(self, job: Job) -> None:
        self._number = number = self._number + 1
        self.jobs[number] = job
        self._order(Work(number, [item.body for item in job.items]))
        self._watch_time(number, self._options.timeout_s)

    def cancel(self, job: Job) -> None:
        """Nobody waits for it any more. It keeps its place until the callable has ended: that of a sync one is not told."""
        for number in [number for number, running in self.jobs.items() if running is job]:
            self._order(Cancel(number))

    def _order(self, order: Order) -> None:
        if not self._killed:
            self._writer.write(frame(order))

    def _on_late(self, number: int) -> None:
        if self._process.returncode is not None:
            return
        if not self.is_async or number in self._late:
            self.fate = self._too_late()
            self._kill()
            return
        self._late.add(number)
        self._order(Cancel(number))
        self._watch_time(number, GRACE_S)

    def _watch_time(self, number: int, time_s: float) -> None:
        self._timers[number] = asyncio.get_running_loop().call_later(time_s, self._on_late, number)

    def _too_late(self) -> Fault:
        message = f"The callable took longer than {self._options.timeout_s:g} s (python.timeout_s)."
        return Fault(504, message, "callable_timeout")

    async def _read(self) -> None:
        try:
            while await self._read_one():
                pass
        except UNDECODABLE as error:
            log.error("%s says what it should not: %s", self.name, error)

    async def _read_one(self) -> bool:
        """A function of its own, for its variables may be large, and end with it."""
        data = await read_frame(self._reader)
        if data is not None:
            self._on_frame(reports.decode(data))
        return data is not None

    def _on_frame(self, report: Report) -> None:
        if isinstance(report, Ready | Unready) or report.id not in self.jobs:
            return
        number, job = report.id, self.jobs[report.id]
        if isinstance(report, Begun):
            self.begun.add(number)
            return
        if not isinstance(report, Piece):
            del self.jobs[number]
            self.begun.discard(number)
            self._timers.pop(number).cancel()
            self.done += 1
            if number in self._late and isinstance(report, Broken):
                report = Broken(number, self._too_late())
            self._late.discard(number)
        self._on_report(self, job, report)

    async def _watch_memory(self) -> None:
        limit_mb = self._options.memory_mb
        while (held := resident_mb(self._process.pid)) <= limit_mb:
            await asyncio.sleep(LOOK_S)
        message = f"The process of the callable held {held} MB, more than {limit_mb} (python.memory_mb), and was ended."
        self.fate = Fault(500, message, "callable_memory")
        self._kill()


def resident_mb(pid: int) -> int:
    """Memory that a process holds, 0 if it has ended. Linux only."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000
