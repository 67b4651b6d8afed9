"""Where the callable of the python engine runs: places for processes, what each is given, and who is to blame when one ends.

Invariants
  - An item is waiting, in one job of one living process, to be run again, or over. Whoever takes it from one puts it into the next.
  - Blamed is what failed alone: one item whose own run raised, or that ran by itself in the process that ended. For memory the
    process must have run nothing before, for it may have leaked over all of that; or several processes held too much in turn.
  - A place whose process has ended gets another. Only when one cannot be started any more is the engine dead.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from services.inference.engine import Chunk, EngineDead
from services.inference.python_answers import answer, refuse
from services.inference.python_batches import Batches, Item, Job, halves
from services.inference.python_frames import Broken, Done, Fault, Piece
from services.inference.python_process import CannotLoad, Process
from shared.clock import monotonic_s
from shared.engine_options import PythonOptions
from shared.errors import ConfigError

log = logging.getLogger(__name__)

STARTS = 5
"""Tries to start a process in a place before the engine is given up. The worker is then started anew by whoever runs it."""
CONVICTS = 1000
"""Tasks remembered. One that is forgotten has to be found again among those it runs with."""
STREAM_BYTES = 64 * 1024 * 1024
"""Of the chunks of a call, which the worker keeps until the end: some 200,000 tokens."""
CHUNK_BYTES = 256
"""Of a chunk beside its data, so that many small ones count as what they are."""
LEAKS = 3
"""Processes in which a call is the one that runs when too much memory is held, before it is blamed though others ran before."""
BACKOFF_S = 0.5
"""Before the second try, doubled before each further one: with all of them, room for a model on a disk that hiccups."""


class Places:
    """`on_death` is told, once, that nothing can be run any more; it closes the places."""

    def __init__(
        self,
        model: str,
        options: PythonOptions,
        environ: Mapping[str, str],
        backoff_s: float,
        on_death: Callable[[str], None],
    ) -> None:
        self._model, self._options, self._environ = model, options, environ
        self._backoff_s, self._on_death = backoff_s, on_death
        self._gpus = gpus(environ)
        self.count = options.processes or len(self._gpus) or 1
        self.steps = 0
        """Of all processes: chunks made, and jobs ended."""
        self._batches = Batches(options.batch_size, options.batch_wait_ms / 1000)
        self._processes: list[Process] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._convicts: dict[str, bool] = {}
        """Tasks that ended a process. The worker will try them again: then each runs alone at once, and nobody else is delayed."""
        self._closed = False

    # -- life

    async def start(self) -> None:
        """Return when every process has loaded. Raises: ConfigError, and then none is left."""
        self._processes = [self._process(number) for number in range(self.count)]
        try:
            await self._load()
        except BaseException:
            await asyncio.gather(*(process.end() for process in self._processes))
            raise
        self._keepers = [asyncio.create_task(self._keep(*place)) for place in enumerate(self._processes)]

    async def _load(self) -> None:
        failed: list[Exception] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                for process in self._processes:
                    tasks.create_task(process.start())
        except* CannotLoad as faults:
            failed.extend(faults.exceptions)
        if failed:
            raise ConfigError(f"python.callable {self._options.callable} cannot be loaded: {failed[0]}")
        if self._options.concurrency > 1 and not self._processes[0].is_async:
            raise ConfigError(
                f"python.concurrency is {self._options.concurrency}, and {self._options.callable} is not async: it runs once "
                "in a process. Raise python.processes instead, or make it async."
            )

    def close(self) -> None:
        """Give out nothing more."""
        self._closed = True
        self._batches.clear()
        if self._timer is not None:
            self._timer.cancel()

    async def stop(self) -> None:
        """Leave no process behind."""
        self.close()
        await asyncio.gather(*(process.stop() for process in self._processes))
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(process.end() for process in self._processes))

    # -- one item

    def add(self, item: Item) -> None:
        """To be run; it is told what comes of it."""
        if self._convicts.pop(item.task_id, False):
            self._batches.add_again([[Job([item], alone=True)]])
        else:
            self._batches.add(item, monotonic_s())
        self._hand_out()

    def leave(self, item: Item) -> None:
        """Nobody reads its answer any more."""
        if item.over:
            return
        item.over = True
        self._batches.remove(item)
        job = item.job
        if job is not None and not job.wanted:
            for process in self._processes:
                process.cancel(job)

    # -- who runs what

    def _hand_out(self) -> None:
        """Give work to every process that has room, the emptiest first."""
        if self._closed:
            return
        while free := [process for process in self._processes if process.room]:
            process = min(free, key=lambda process: len(process.jobs))
            jobs = self._batches.next(monotonic_s(), empty=not process.jobs)
            if not jobs:
                break
            for job in jobs:
                process.send(job)
        self._look_again()

    def _look_again(self) -> None:
        """When a batch that is not full goes all the same. Without a free process the next one to be free looks."""
        if self._timer is not None:
            self._timer.cancel()
        due_at_s = self._batches.due_at_s
        self._timer = None
        if due_at_s is not None and any(process.room for process in self._processes):
            delay_s = max(0.0, due_at_s - monotonic_s())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._hand_out)

    def _on_report(self, process: Process, job: Job, report: Piece | Done | Broken) -> None:
        match report:
            case Piece(data=data):
                self.steps += 1
                self._pass_on(process, job, data)
                return
            case Done(results=results) if len(results) == len(job.items):
                for item, result in zip(job.items, results, strict=True):
                    item.tell(answer(result))
            case Done():
                self._fail(job, Fault(500, "The process of the callable does not answer each body."), alone=job.alone)
            case Broken(fault=fault):
                self._fail(job, fault, alone=job.alone)
        self.steps += 1
        self._hand_out()

    def _pass_on(self, process: Process, job: Job, data: bytes) -> None:
        item = job.items[0]
        if item.over:
            return
        item.made += len(data) + CHUNK_BYTES
        if item.made <= STREAM_BYTES:
            item.tell(Chunk(data))
            return
        message = f"The callable streams more than {STREAM_BYTES} bytes, with {CHUNK_BYTES} for each chunk."
        item.tell(refuse(507, message, "result_too_large"))
        process.cancel(job)

    def _fail(self, job: Job, fault: Fault, *, alone: bool) -> None:
        """The job is to blame: of several items the one has to be found."""
        if len(job.items) == 1:
            job.items[0].tell(answer(fault))
        else:
            self._batches.add_again(halves([job], alone=alone))

    # -- processes that end

    async def _keep(self, number: int, process: Process) -> None:
        """Have a process in this place for as long as the engine runs."""
        idle_ends = 0
        try:
            while True:
                await process.serve()
                if self._closed:
                    return
                log.warning("%s has ended: %s", process.name, process.why)
                idle_ends = 0 if process.begun or process.done else idle_ends + 1
                self._on_end(process)
                self._hand_out()  # to the others: this place may have a model to load first
                process = await self._replace(number, process.why, tries=idle_ends)
        except Exception as error:
            log.exception("%s cannot be replaced", process.name)
            self._on_death(f"{process.name} cannot be replaced: {error}")

    def _on_end(self, process: Process) -> None:
        self._batches.add_again([[job] for number, job in process.jobs.items() if number not in process.begun])
        jobs = [process.jobs[number] for number in sorted(process.begun)]
        fault = Fault(process.fate.status, f"The callable's process: {process.why}.", process.fate.code)
        fault = process.fate if process.fate.message else fault
        leaked = fault.code == "callable_memory" and process.done > 0
        if leaked and len(jobs) == 1 and len(jobs[0].items) == 1:
            jobs[0].items[0].leaks += 1
            leaked = jobs[0].items[0].leaks < LEAKS
        if len(jobs) == 1 and not leaked:
            self._fail(jobs[0], fault, alone=True)
            self._convict(jobs[0])
        elif jobs:
            for item in (item for job in jobs for item in job.items if item.begun):
                item.tell(refuse(503, "Its process was ended by another call.", "callable_interrupted"))
            self._batches.add_again(halves(jobs, alone=True))

    def _convict(self, job: Job) -> None:
        if len(job.items) == 1:
            self._convicts[job.items[0].task_id] = True
            if len(self._convicts) > CONVICTS:
                del self._convicts[next(iter(self._convicts))]

    async def _replace(self, number: int, why: str, tries: int) -> Process:
        """Another process in this place; of the one before `why` tells the end. Raises: EngineDead if none can be started."""
        while tries < STARTS:
            if tries:
                await asyncio.sleep(self._backoff_s * 2 ** (tries - 1))
            process = self._process(number)
            try:
                await process.start()
            except CannotLoad as error:
                tries, why = tries + 1, str(error)
                log.error("%s cannot be started, try %d of %d: %s", process.name, tries, STARTS, error)
                continue
            self._processes[number] = process
            self._hand_out()
            return process
        raise EngineDead(f"it did not live to do any work, in {STARTS} tries; of the last: {why}")

    def _process(self, number: int) -> Process:
        environ = dict(self._environ)
        if self._gpus:
            environ["CUDA_VISIBLE_DEVICES"] = self._gpus[number % len(self._gpus)]
        return Process(self._options, f"{self._model}[{number}]", environ, self._on_report)


def gpus(environ: Mapping[str, str]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES names. As in CUDA, nothing counts from the first -1 on."""
    names = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    seen = names[: names.index("-1")] if "-1" in names else names
    return [name for name in seen if name]
