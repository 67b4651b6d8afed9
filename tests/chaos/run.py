"""The phases of a chaos run: start, (reference answers,) load and faults, drain, audit."""

import asyncio
import contextlib
import ctypes
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
from msgspec import Struct

from shared.clock import monotonic_s
from shared.config import EngineName
from tests.chaos import leftovers, report
from tests.chaos.audit import Audit, Breach, quarantined, run_twice
from tests.chaos.clients import Clients, Unexpected
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.faults import Fault, Injector, schedule
from tests.chaos.history import History, Ticket
from tests.chaos.link import Link
from tests.chaos.recovery import Recovery, percentile
from tests.chaos.report import Report
from tests.chaos.stream_door import StreamDoor
from tests.chaos.tickets import Shares, echoes, prompts
from tests.chaos.witness import Witness
from tests.support.deployment import command_line
from tests.support.processes import alive, children

MODEL = "smollm2-135m-instruct"
AT_ONCE = 500
"""Tickets that are open at once: beyond it the load waits, as clients do when a service is away."""
PATIENCE_S = {"echo": 150.0, "vllm": 600.0}
"""Longer than any fault, and than a restart of vLLM."""
RUN_S = {"echo": 30, "vllm": 300}
"""Longest run of an attempt."""
TOKENS_PER_MIN = 120_000
"""Of one tenant: reached now and then, as each of its tasks reserves hundreds and uses tens."""
LONG_MINUTES = 2.0
"""A run of this length waits in the end until the bus must be empty, too."""
SETTLE_S = 30.0
"""After the results have expired: Redis looks for expired keys when it has time."""


Progress = Callable[[Callable[[], str]], AbstractAsyncContextManager[None]]
"""Shows the line that its argument makes, while the block runs."""


class Options(Struct, frozen=True, kw_only=True):
    seed: int
    folder: Path
    minutes: float = 2.0
    rate: float = 20.0
    """Tasks a second."""
    every_s: float = 3.0
    """Mean time between faults."""
    replicas: str = "ingress=2,scheduler=2,inference=3,notifier=2"
    kinds: Mapping[str, int]
    """Of faults, and how often each is drawn."""
    engine: EngineName = "echo"
    lease_s: float = 10.0
    kept_s: int = 60
    """Results and logs."""
    shares: Shares = Shares()


CONFIG = """
[pools.smol]
model = "{model}"
partitions = 2
[pools.smol.echo]
tokens_per_s = 20.0
faults = true
[pools.smol.vllm]
options = {{ dtype = "float32", max-model-len = 512, kv-cache-memory-bytes = 134217728 }}
[limits]
results_kept_s = {kept_s}
log_kept_s = {kept_s}
lease_s = {lease_s}
crashes = 5
run_s = {run_s}
waiting_s = {waiting_s}
[tenants.millers]
weight = 3
tokens_per_min = {tokens_per_min}
[tenants.pages]
running = 8
batch_tokens = 100_000
queued = 1000
"""


class Run:
    def __init__(
        self, options: Options, history: History, running: Cluster, own: Link, others: Collection[int]
    ) -> None:
        """`others`: processes that this one had started before."""
        self._options, self._history, self._cluster, self._others = options, history, running, others
        self._dice = random.Random(f"clients {options.seed}")
        self.witness, self.recovery = Witness(running), Recovery(history)
        self._door = StreamDoor(history, own.url, MODEL, self._dice)
        self._clients = Clients(
            history, running, self._door, self._dice, model=MODEL, patience_s=PATIENCE_S[options.engine]
        )
        self.injector = Injector(running, own, history, self._on_fault)
        self.duration_s = self.drain_s = 0.0
        self._open: set[asyncio.Task[None]] = set()

    def progress(self) -> str:
        ended = sum(1 for story in self._history.stories.values() if story.ended.is_set())
        return (
            f"{self._history.now_s():6.0f} s  {sum(self.injector.injected.values()):4} faults  "
            f"{len(self._history.stories):6} tasks, {ended} ended, {len(self._open)} open"
        )

    async def run(self) -> None:
        self.before = await leftovers.content(self._cluster.redis)
        async with contextlib.AsyncExitStack() as stack:
            for reading in (self.witness.run(self.recovery.on_event), self._door.read()):
                stack.push_async_callback(_stopped, asyncio.create_task(reading))
            stack.push_async_callback(self._clients.close)
            await self._load(await self._tickets())
            await self._drain()
        self.unsound = await leftovers.ended_well(self._cluster)
        await self._door.close()
        await self._cluster.redis.delete(self._door.stream)
        if self._options.minutes >= LONG_MINUTES:
            await asyncio.sleep(leftovers.BUS_KEPT_S)
        patience_s = self._options.kept_s + SETTLE_S
        self.after, self.leaks = await leftovers.settled(self._cluster, self.before, patience_s)

    async def _tickets(self) -> Iterator[Ticket]:
        if self._options.engine == "echo":
            return echoes(self._options.seed, self._options.shares)
        return prompts(self._options.seed, await self._clients.references())

    async def _load(self, tickets: Iterator[Ticket]) -> None:
        began_s, duration_s = self._history.now_s(), self._options.minutes * 60
        faults = schedule(self._options.seed, duration_s, self._options.every_s, self._options.kinds)
        breaking = asyncio.create_task(self.injector.run(faults, began_s))
        next_s = began_s
        while (now_s := self._history.now_s()) < began_s + duration_s:
            if now_s < next_s:
                await asyncio.sleep(next_s - now_s)
            next_s += self._dice.expovariate(self._options.rate)
            if len(self._open) < AT_ONCE:
                self._begin(next(tickets))
        await breaking
        self.duration_s = now_s - began_s

    def _begin(self, ticket: Ticket) -> None:
        task = asyncio.create_task(self._serve(ticket), name=ticket.key)
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, ticket: Ticket) -> None:
        try:
            await self._clients.serve(ticket)
        except Unexpected as error:
            self._history.note(ticket.key, "unexpected", why=str(error))
        except Exception as error:
            self._history.note(ticket.key, "unexpected", why=f"the client itself failed: {error!r}")
            raise

    async def _drain(self) -> None:
        """Faults are over: everything that was asked must end in bounded time."""
        await self.injector.finish()
        began_s = monotonic_s()
        await self._cluster.wait_ready([self._cluster.server, *self._cluster.all])
        if self._open:
            await asyncio.wait(self._open, timeout=PATIENCE_S[self._options.engine])
        for _ in range(100):  # the witness reads what the clients have seen
            if not self.witness.unfinished():
                break
            await asyncio.sleep(0.1)
        self.drain_s = monotonic_s() - began_s

    def _on_fault(self, fault: Fault, target: str) -> None:
        member = next((m for m in self._cluster.of("inference") if m.program.name == target), None)
        if member is not None and member.link is not None:
            self.recovery.on_fault(f"{fault.kind} of a worker", self.witness.held_by(member.link.worker), each=True)
        else:
            self.recovery.on_fault(fault.kind, self.witness.unfinished(), each=False)

    def report(self) -> Report:
        """After the last process has ended."""
        breaches = Audit(self._history, self.witness, self._cluster.config.limits).breaches()
        breaches += [Breach("Redis is sound", fault.partition(":")[0], fault) for fault in self.unsound]
        breaches += [Breach("drained is empty", "redis", leak) for leak in self.leaks]
        breaches += [
            Breach("no process is left", str(pid), " ".join(command_line(pid)))
            for pid in children(os.getpid())
            if alive(pid) and pid not in self._others
        ]
        history, traces = self._history, self.witness.traces
        events = [event for story in history.stories.values() for event in story.events]
        cancels = report.cancel_seconds(history)
        told = [line.split()[1] for trace in traces.values() for line in trace.story]
        died = [event.details for event in history.others if event.what == "died"]
        return Report(
            seed=self._options.seed,
            engine=self._options.engine,
            replicas=self._options.replicas,
            duration_s=self.duration_s,
            drain_s=self.drain_s,
            faults=self.injector.injected,
            faults_skipped=self.injector.skipped,
            deaths=Counter(said["how"] for said in died),
            tasks=Counter(story.ticket.door for story in history.stories.values()),
            ends=report.ends_of(history),
            broken_connections=history.counts["broken"],
            refusals=Counter(str(e.details.get("status", "?")) for e in events if e.what == "refused"),
            poisoned=Counter(s.ticket.poison for s in history.stories.values() if s.ticket.poison),
            run_twice=run_twice(traces.values()),
            resets=told.count("reset"),
            resumed=told.count("resumed"),
            quarantined=quarantined(history),
            cancel_p50_s=percentile(cancels, 0.5),
            cancel_p99_s=percentile(cancels, 0.99),
            recovery=report.recovered(self.recovery.seconds()),
            bytes_before=self.before.bytes,
            bytes_after=self.after.bytes,
            bytes_kept=self.after.kept_bytes,
            breaches=breaches,
        )


async def chaos(options: Options, progress: Progress) -> Report:
    """A whole run. Its folder holds the history, the logs of all processes, the report, and tales of what went wrong."""
    with adopting_orphans():
        others = children(os.getpid())
        history = History(options.folder / "history.jsonl")
        run_s, patience_s = RUN_S[options.engine], PATIENCE_S[options.engine]
        config = CONFIG.format(
            model=MODEL,
            kept_s=options.kept_s,
            lease_s=options.lease_s,
            run_s=run_s,
            waiting_s=int(patience_s) + 50,
            tokens_per_min=TOKENS_PER_MIN,
        )
        async with cluster(options.folder, config, options.replicas, options.engine, history) as (running, own):
            run = Run(options, history, running, own, others)
            async with progress(run.progress):
                await run.run()
        history.close()
        made = run.report()
        _write(made, run.witness, history, options.folder)
    return made


def _write(made: Report, witness: Witness, history: History, folder: Path) -> None:
    (folder / "report.txt").write_text(made.text() + "\n")
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(made)))
    with (folder / "traces.jsonl").open("wb") as traces:
        for id, trace in witness.traces.items():
            line = {"key": history.by_id.get(id, ""), "id": id, "story": trace.story, "hash": trace.found}
            traces.write(msgspec.json.encode(line) + b"\n")
    keys = dict.fromkeys(breach.key for breach in made.breaches)
    stories = [history.stories[key] for key in keys if key in history.stories]
    if stories:
        tales = [report.tale(story, witness.traces) for story in stories]
        (folder / "tales.txt").write_text("\n\n".join(tales) + "\n")


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Meanwhile whoever loses its parent becomes our child, so that nothing can hide from the last look (Linux)."""
    set_child_subreaper, prctl = 36, ctypes.CDLL(None).prctl
    prctl(set_child_subreaper, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(set_child_subreaper, 0, 0, 0, 0)


async def _stopped(task: asyncio.Task[None]) -> None:
    """Cancelled until it obeys: a library may take a cancellation for its own timeout."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1)
    if not task.cancelled():
        task.result()
