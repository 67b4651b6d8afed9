"""From a work entry to the end of a run: start, run on the engine, publish, finish or give up.

    work entry -> start.lua -> (rebase.lua) -> Engine.run -> Emitter (emit.lua) -> Closing (finish.lua | release.lua)

A body that is too large for Redis is read from the object store before the engine runs.

Invariants
  - A task is in `runs` from its start to its end, and once: its entry, should it come again, is passed over. Another entry is
    another hand-out: the task was taken from this worker, or given up by it, and has come back before the run was over here. It
    is looked at as soon as that is.
  - An entry is a slot that is taken, so none may be lost sight of. Nothing here has to keep that in mind: an entry that is in no
    run comes again until it is cleared (shared/bus/consume.py), and start.lua knows what is to be done with it. So whatever
    fails beside a run is told and left: a Redis that has forgotten a start, a key of another type, a fault of our own.
  - The fence travels with every write. Whoever answers 'fenced' ends the run here: somebody else has the task.
  - A run ends in one of two ways, each one script: finished, or given up (told to stop, drained, engine dead, to be tried
    again). Both take along what was not published yet, and clear the work entry, and with it the slot.
  - If Redis cannot be reached for either, the run waits until it can, and the lease decides who has the task by then.

Rejected: acknowledging after finish in a call of its own (a crash between the two runs the task again for nothing). A list in
each beat of the entries that the worker holds, for the scheduler to take back the others: what is on its way to a worker is in no
such list either, and the worker can start what a scheduler could only give to others.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial

from services.inference import metrics
from services.inference.closing import Closing
from services.inference.continuing import Base, going_on, made_anew
from services.inference.emitter import Emitter
from services.inference.ending import failure
from services.inference.engine import Answer, Call, CannotResume, Chunk, Engine, EngineDead
from services.inference.responding import as_ours
from services.inference.restoring import restore, tell
from services.inference.room import UPSTREAM_OPEN, Room
from services.inference.run import DRAINED, ENGINE_DIED, FENCED, UNREACHABLE, UNREADABLE, Fenced, Parting, Run
from services.inference.scripts import Hand, Owner, Running, start
from shared.bus.client import Bus
from shared.bus.consume import Entry
from shared.bus.script import MAX_ITEMS
from shared.clock import monotonic_s
from shared.config import Config
from shared.errors import UNDECODABLE, BusError, NoObjectStore, ObjectMissing, StoreUnavailable
from shared.files import Files
from shared.large import Large
from shared.lifecycle import Lane
from shared.objects import Objects
from shared.routes import RESPONSES

log = logging.getLogger(__name__)

LAST_WORDS_S = 10.0
"""For handing back what is not done, after the time to drain."""


class Worker:
    def __init__(self, bus: Bus, owner: Owner, engine: Engine, config: Config, objects: Objects | None = None) -> None:
        """`objects`: where bodies and answers lie that are too large for Redis; None: there are none."""
        self._bus, self._owner, self._engine, self._limits = bus, owner, engine, owner.limits
        self._config, self._large = config, Large(bus, objects, owner.limits.inline_bytes)
        self._files = Files(bus, objects, owner.limits.files_kept_s)
        self.room = Room(engine, config)
        self.runs: dict[str, Run] = {}
        self.died = asyncio.Event()
        """Set when the engine has died: nothing more can run here."""
        self._emitter = Emitter(bus, owner, self.stop)
        self._closing = Closing(bus, owner, self._emitter, self.room, self._large)
        self._aside: dict[bytes, asyncio.Task[None]] = {}
        """Work of no run, by entry: tasks that cannot start yet, or not at all."""

    async def on_work(self, entries: list[Entry]) -> Sequence[bytes]:
        """Take what was handed to this worker. The scripts clear hands, so only other entries are named as done."""
        hands, done = self._sort(entries)
        for first in range(0, len(hands), MAX_ITEMS):
            await self._start(hands[first : first + MAX_ITEMS])
        return done

    def stop(self, task_id: str, why: Parting) -> None:
        """Break off a run, unless it is ending anyway."""
        run = self.runs.get(task_id)
        if run is not None and run.parting is None and not run.ending and run.working is not None:
            run.parting = why
            run.working.cancel()

    def fault(self) -> str | None:
        """For the readiness of the service."""
        return "the engine is dead" if self.died.is_set() else None

    async def check_engine(self) -> None:
        """Notice a death that no task has run into."""
        try:
            await self._engine.health()
        except EngineDead as error:
            log.error("the engine is dead: %s", error)
            self.died.set()

    async def drain(self, timeout_s: float) -> None:
        """Let what runs end; what does not within `timeout_s` is given up with all it has made. Nothing begins any more."""
        for task in self._aside.values():
            task.cancel()
        working = [run.working for run in self.runs.values() if run.working is not None]
        if working:
            _, late = await asyncio.wait(working, timeout=timeout_s)
            for task_id in list(self.runs):
                self.stop(task_id, ENGINE_DIED if self.died.is_set() else DRAINED)
            if late:
                _, silent = await asyncio.wait(late, timeout=LAST_WORDS_S)
                for task in silent:
                    task.cancel()
        await self._emitter.stop()
        await self._closing.drain()

    # -- what comes

    def _sort(self, entries: list[Entry]) -> tuple[list[Hand], list[bytes]]:
        """What to start, and the entries that are done with: tasks to stop, and what no script of ours has written."""
        hands, done = [], []
        for entry in entries:
            try:
                id = entry.fields[b"t"].decode()
                if b"stop" in entry.fields:
                    self.stop(id, Parting("none", entry.fields[b"stop"].decode()))
                    done.append(entry.id)
                else:
                    hand = Hand(id, int(entry.fields[b"e"]), entry.id)
                    if not self._is_running(hand) and hand.entry not in self._aside:
                        hands.append(hand)
            except (KeyError, ValueError):
                done.append(entry.id)
        return hands, done

    def _is_running(self, hand: Hand) -> bool:
        """Whether its task runs. If that is of another hand-out, this one is put behind it."""
        held = self.runs.get(hand.id)
        if held is not None and held.hand.entry != hand.entry:
            self._do_aside(hand, partial(self._start_behind, held, hand))
        return held is not None

    async def _start(self, hands: list[Hand]) -> None:
        for hand, verdict in zip(hands, await start(self._bus, self._owner, hands), strict=True):
            if isinstance(verdict, Running):
                self._begin(hand, verdict)
            elif verdict != "stale":
                log.error("task %s cannot start: %s holds a type that is not Headrace's", hand.id, verdict)

    async def _start_behind(self, held: Run, hand: Hand) -> None:
        if hand.epoch > held.hand.epoch:
            self.stop(held.id, FENCED)
        if held.working is not None:
            await asyncio.wait([held.working])
        await self._start([hand])

    def _begin(self, hand: Hand, running: Running) -> None:
        if self._is_running(hand):
            return
        try:
            run = Run(hand, running)
        except UNDECODABLE as error:  # it is written over; the others must go on
            log.error("task %s cannot be read: %s", hand.id, error)
            self._do_aside(hand, partial(self._closing.refuse, hand, running.published, UNREADABLE))
            return
        self.runs[run.id] = run
        metrics.RUNNING.set(len(self.runs))
        metrics.WAITED.labels(run.task.lane).observe(run.waited_s)
        metrics.observe_eta(run.task, running)
        run.working = asyncio.create_task(self._work(run))

    def _do_aside(self, hand: Hand, work: Callable[[], Awaitable[object]]) -> None:
        """Unless something is done with the entry already. Should it fail, the entry comes again."""

        async def guarded() -> None:
            try:
                await work()
            except BusError as error:
                log.error("%s must wait: %s", hand.id, error)
            except Exception:
                log.exception("%s must wait", hand.id)

        if hand.entry not in self._aside:
            task = self._aside[hand.entry] = asyncio.create_task(guarded())
            task.add_done_callback(lambda _: self._aside.pop(hand.entry))

    # -- one task

    async def _work(self, run: Run) -> None:
        try:
            if self.room.closed:
                await self._closing.give_up(run, UPSTREAM_OPEN)
            else:
                self.room.began(run.id, run.task.lane)
                await self._run(run)
        except Exception:
            log.exception("the run of %s is broken", run.id)
            await self._closing.abandon(run)
        finally:
            self.room.left(run.id)
            del self.runs[run.id]
            metrics.RUNNING.set(len(self.runs))

    async def _run(self, run: Run) -> None:
        longest_s, setting = self._longest(run.task.lane)
        try:
            if run.task.stored is not None:  # with a time limit of its own: a store that hangs is no fault of the task
                run.body = await self._large.get(run.id, run.task.stored)
            async with asyncio.timeout(longest_s):
                answer = await self._generate(run)
        except EngineDead as error:
            log.error("the engine died while it ran %s: %s", run.id, error)
            self.died.set()
            await self._closing.give_up(run, run.parting or ENGINE_DIED)
        except Fenced as error:
            log.warning("%s cannot go on: %s", run.id, error)
            await self._closing.give_up(run, FENCED)
        except BusError as error:
            log.error("%s cannot go on: %s", run.id, error)
            await self._closing.give_up(run, UNREACHABLE)
        except asyncio.CancelledError:
            if run.parting is None:
                raise
            await self._closing.give_up(run, run.parting)
        except TimeoutError:
            await self._closing.late(run, f"The task ran for more than {longest_s:g} s ({setting}).")
        except (ObjectMissing, StoreUnavailable, NoObjectStore) as error:
            await self._closing.unread(run, error)
        else:
            await self._closing.answered(run, answer)

    def _longest(self, lane: Lane) -> tuple[float, str]:
        """Seconds that a run may take, and the setting that says so."""
        own = self._config.policy.lanes[lane].run_s
        return (self._limits.run_s, "limits.run_s") if own is None else (own, f"lanes.{lane}.run_s")

    async def _generate(self, run: Run) -> Answer:
        """Raises: as _take."""
        if not run.based:
            await restore(self._bus, self._owner, run)
        if run.based:
            return await self._take(run, self._ask(run))
        published = tuple(run.chunks)
        try:
            return await self._take(run, going_on(self._ask(run, published), published))
        except CannotResume as error:
            log.info("%s is made anew: %s", run.id, error)
            return await self._take(run, made_anew(self._ask(run), published))

    def _ask(self, run: Run, published: tuple[Chunk, ...] = ()) -> AsyncGenerator[Chunk | Answer, None]:
        priority = run.task.lane.priority
        call = Call(
            task_id=run.id,
            route=run.task.route,
            body=run.body,
            content_type=run.task.content_type,
            priority=priority,
            tenant=run.task.tenant,
            files=self._files,
            published=published,
        )
        pieces = self._engine.run(call)
        return pieces if run.task.route != RESPONSES else as_ours(pieces, run.id, run.task.response)

    async def _take(self, run: Run, pieces: AsyncGenerator[Chunk | Answer | Base, None]) -> Answer:
        """Publish what comes, until the answer. Raises: EngineDead, CannotResume, Fenced, BusError."""
        answer = failure("The engine ended without an answer.")
        try:
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    match piece:
                        case Chunk():
                            self._on_chunk(run, piece)
                        case Answer():
                            answer = piece
                        case Base():
                            await tell(self._bus, self._owner, run, behind=piece.chunks)
        except (EngineDead, CannotResume, Fenced, BusError):
            raise
        except Exception as error:
            log.exception("the engine failed on %s", run.id)
            return failure(f"The engine failed: {type(error).__name__}: {error}")
        return answer

    def _on_chunk(self, run: Run, chunk: Chunk) -> None:
        if not run.last:
            metrics.FIRST_CHUNK.labels(run.task.lane).observe(run.waited_s + monotonic_s() - run.started_at_s)
        run.chunks.append(chunk)
        metrics.CHUNKS.inc()
        metrics.TOKENS.inc(len(chunk.tokens))
        self._emitter.mark(run)
