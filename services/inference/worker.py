"""From a work entry to a terminal state: start, run on the engine, publish, finish.

    work entry -> start.lua -> Engine.run -> Emitter (emit.lua) -> finish.lua

Invariants
  - A task is in `runs` from its start to its end, and once: an entry that comes again for it is passed over.
  - The fence travels with every write. Whoever answers 'fenced' ends the run here: somebody else has the task.
  - A run ends in exactly one way: finished, fenced, or left to be handed back by retire (drain, engine dead).
  - The work entry, and with it the slot, goes in the script that finishes the task.

Rejected: acknowledging after finish in a call of its own (a crash between the two runs the task again for nothing).
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

import msgspec

from services.inference import metrics
from services.inference.emitter import Emitter
from services.inference.ending import Conclusion, conclude, ending, failure
from services.inference.engine import Answer, Call, Chunk, Engine, EngineDead
from services.inference.run import Run
from services.inference.scripts import Ending, Hand, Owner, Running, finish, start
from shared.bus.batch import Batcher
from shared.bus.client import Bus
from shared.bus.consume import Entry
from shared.bus.script import MAX_ITEMS
from shared.clock import monotonic_s
from shared.config import Limits
from shared.errors import BusError

log = logging.getLogger(__name__)


class Worker:
    def __init__(self, bus: Bus, owner: Owner, engine: Engine, limits: Limits) -> None:
        self._bus, self._owner, self._engine, self._limits = bus, owner, engine, limits
        self.runs: dict[str, Run] = {}
        self.died = asyncio.Event()
        """Set when the engine has died: nothing more can run here."""
        self._emitter = Emitter(bus, owner, self.abort)
        self._endings: Batcher[Ending, str] = Batcher(self._finish_all, size=lambda e: len(e.result) + len(e.chunks))

    async def on_work(self, entries: list[Entry]) -> Sequence[bytes]:
        """Take what was handed to this worker. The scripts clear the entries, so none is named as done."""
        hands, foreign = self._sort(entries)
        for first in range(0, len(hands), MAX_ITEMS):
            page = hands[first : first + MAX_ITEMS]
            for hand, verdict in zip(page, await start(self._bus, self._owner, page), strict=True):
                if isinstance(verdict, Running):
                    self._begin(hand, verdict)
                elif verdict != "stale":
                    log.error("task %s cannot start: %s holds a type that is not Headrace's", hand.id, verdict)
        return foreign

    def _sort(self, entries: list[Entry]) -> tuple[list[Hand], list[bytes]]:
        """What to start, and the entries that no dispatch of ours has written (or that are gone): done with."""
        hands, foreign = [], []
        for entry in entries:
            try:
                hand = Hand(entry.fields[b"t"].decode(), int(entry.fields[b"e"]), entry.id)
            except (KeyError, ValueError):
                foreign.append(entry.id)
                continue
            if hand.id not in self.runs:
                hands.append(hand)
        return hands, foreign

    def abort(self, run: Run) -> None:
        """Stop working on a task that is no longer this worker's."""
        metrics.FENCED.inc()
        if run.working is not None:
            run.working.cancel()

    def abort_id(self, task_id: str) -> None:
        if (run := self.runs.get(task_id)) is not None:
            self.abort(run)

    async def check_engine(self) -> None:
        """Notice a death that no task has run into."""
        try:
            await self._engine.health()
        except EngineDead as error:
            log.error("the engine is dead: %s", error)
            self.died.set()

    async def drain(self, timeout_s: float) -> None:
        """Let what runs end; what does not within `timeout_s` is stopped here, to be handed back."""
        working = [run.working for run in self.runs.values() if run.working is not None]
        if working:
            _, late = await asyncio.wait(working, timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        await self._emitter.stop()
        await self._endings.drain()

    # -- one task

    def _begin(self, hand: Hand, running: Running) -> None:
        try:
            run = Run(hand, running)
        except msgspec.DecodeError as error:  # written over by somebody else; the others of the batch must go on
            log.error("task %s cannot be read, its lease decides: %s", hand.id, error)
            return
        self.runs[run.id] = run
        metrics.RUNNING.set(len(self.runs))
        metrics.WAITED.labels(run.task.lane).observe(run.waited_s)
        run.working = asyncio.create_task(self._work(run))

    async def _work(self, run: Run) -> None:
        try:
            answer = await self._generate(run)
            await self._end(run, answer)
        except EngineDead as error:
            log.error("the engine died while it ran %s: %s", run.id, error)
            self.died.set()
        except asyncio.CancelledError:
            log.info("stopped working on %s", run.id)
        except BusError as error:
            log.error("the end of %s cannot be written, its lease decides: %s", run.id, error)
        finally:
            del self.runs[run.id]
            metrics.RUNNING.set(len(self.runs))

    async def _generate(self, run: Run) -> Answer:
        task = run.task
        call = Call(task_id=run.id, route=task.route, body=run.body, priority=task.lane.priority)
        answer = failure("The engine ended without an answer.")
        try:
            async with contextlib.aclosing(self._engine.run(call)) as pieces:
                async for made in pieces:
                    if isinstance(made, Answer):
                        answer = made
                    else:
                        self._on_chunk(run, made)
        except EngineDead:
            raise
        except Exception as error:
            log.exception("the engine failed on %s", run.id)
            return failure(f"The engine failed: {type(error).__name__}: {error}")
        return answer

    def _on_chunk(self, run: Run, chunk: Chunk) -> None:
        if not run.chunks:
            waited_s = run.waited_s + monotonic_s() - run.started_at_s
            metrics.FIRST_CHUNK.labels(run.task.lane).observe(waited_s)
        run.chunks.append(chunk)
        metrics.CHUNKS.inc()
        metrics.TOKENS.inc(len(chunk.tokens))
        self._emitter.mark(run)

    async def _end(self, run: Run, answer: Answer) -> None:
        await self._emitter.settle(run)
        conclusion = self._conclude(run, answer)
        while (verdict := await self._endings.add(ending(run, conclusion))) != "ok":
            if verdict == "fenced":
                metrics.FENCED.inc()
                return
            if verdict.startswith("gap"):
                run.published = int(verdict[4:])
                if run.published > len(run.chunks):  # another generation's output; its lease decides
                    log.error("task %s has %d chunks published, this run made fewer", run.id, run.published)
                    return
            else:
                log.error("task %s waits to end: %s holds a type that is not Headrace's", run.id, verdict[10:])
                await asyncio.sleep(1)
        metrics.ENDED.labels(conclusion.state, conclusion.reason).inc()
        metrics.RAN.labels(run.task.lane).observe(monotonic_s() - run.started_at_s)

    def _conclude(self, run: Run, answer: Answer) -> Conclusion:
        limit_bytes = self._limits.result_bytes
        try:
            return conclude(run, answer, limit_bytes)
        except Exception as error:
            log.exception("the chunks of %s do not make an answer", run.id)
            return conclude(run, failure(f"The engine's chunks do not make an answer: {error!r}"), limit_bytes)

    async def _finish_all(self, endings: Sequence[Ending]) -> Sequence[str]:
        return await finish(
            self._bus,
            self._owner,
            endings,
            results_kept_s=self._limits.results_kept_s,
            log_kept_s=self._limits.log_kept_s,
        )
