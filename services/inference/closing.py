"""How runs end: each by one write, repeated until Redis takes it, that joins all that is not published yet.

    answer ── failed, to be tried again ──> release.lua: set back, or its last failure
       └───── any other ──> (object store) ─> finish.lua
    given up ──────────────────────────────> release.lua

However long Redis is out of reach, the run waits with what it has made. Should its lease lapse meanwhile, the verdict is 'fenced':
somebody else has the task, and the slot is free again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from msgspec.structs import replace

from services.inference import metrics
from services.inference.emitter import Emitter
from services.inference.ending import (
    RETRIED,
    Conclusion,
    conclude,
    ending,
    failure,
    parting,
    setback,
    unread,
    untouched,
)
from services.inference.engine import Answer
from services.inference.room import UPSTREAM_OPEN, Room
from services.inference.run import BROKEN, OUT_OF_STEP, Parting, Run
from services.inference.scripts import Ending, Hand, Owner, Release, finish, release
from shared.bus.batch import Batcher
from shared.bus.client import Bus
from shared.clock import monotonic_s
from shared.errors import BusError, HeadraceError, ObjectMissing, StoreUnavailable
from shared.large import Large

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""Between two tries while Redis is out of reach, or a key holds another type until somebody removes it."""
STORE_PAUSE_S = 10.0
"""At the soonest after so long a task is tried again whose body could not be read: an object store that is down stays so for a
minute rather than a second, and the tries of a task are few."""

End = TypeVar("End", Ending, Release)


class Closing:
    def __init__(self, bus: Bus, owner: Owner, emitter: Emitter, room: Room, large: Large) -> None:
        self._bus, self._owner, self._emitter, self._room, self._large = bus, owner, emitter, room, large
        self._endings: Batcher[Ending, str] = Batcher(self._finish_all, size=lambda e: len(e.result) + len(e.chunks))
        self._releases: Batcher[Release, str] = Batcher(self._release_all, size=lambda r: len(r.result) + len(r.chunks))

    async def answered(self, run: Run, answer: Answer) -> None:
        """The engine has had its say."""
        run.ending = True
        charged = self._room.answered(run.id, answer.status, unreached=answer.unreached)
        retried = answer.status in RETRIED
        if retried and not charged:
            await self.give_up(run, UPSTREAM_OPEN)
            return
        await self._emitter.settle(run)
        conclusion = self._conclude(run, answer)
        if retried:
            await self._set_back(run, conclusion, answer.retry_after_s)
        else:
            await self._finish(run, await self._stored(run, conclusion))

    async def late(self, run: Run, message: str) -> None:
        """It ran for too long, which another try would not mend."""
        run.ending = True
        answer = failure(message, status=504, code="run_time_exceeded")
        self._room.answered(run.id, answer.status)
        await self._emitter.settle(run)
        await self._finish(run, self._conclude(run, answer))

    async def unread(self, run: Run, error: HeadraceError) -> None:
        """Its body could not be read: the engine, which was not asked, is not to blame. One that is gone leaves a dead letter at once:
        whoever brings the store's content back can have it run again."""
        log.error("the body of %s cannot be read: %s", run.id, error)
        run.ending = True
        conclusion = self._conclude(run, unread(error))
        await self._set_back(run, conclusion, STORE_PAUSE_S, final=isinstance(error, ObjectMissing))

    async def give_up(self, run: Run, why: Parting) -> None:
        run.ending = True
        await self._emitter.settle(run)
        outcome = await self._last_word(run, self._releases.add, lambda: parting(run, why))
        metrics.GIVEN_UP.labels(why.why, outcome).inc()
        log.info("gave up %s (%s): %s", run.id, why.why, outcome)

    async def abandon(self, run: Run) -> None:
        """A fault that nobody has thought of: what is published stands, the rest cannot be told."""
        run.ending = True
        await self._emitter.settle(run)
        await self.refuse(run.hand, run.published, BROKEN)

    async def refuse(self, hand: Hand, published: int, why: Parting) -> None:
        """Give a task up without anything of this run."""
        verdict = await self._hand_back(hand, published, why)
        metrics.GIVEN_UP.labels(why.why, verdict).inc()

    async def drain(self) -> None:
        await self._endings.drain()
        await self._releases.drain()

    # -- parts

    async def _stored(self, run: Run, conclusion: Conclusion) -> Conclusion:
        """A large answer goes into the object store. Not one whose pieces went through Redis already, nor one that others may be
        given; and if the store does not take it, it goes through Redis as well."""
        inline = run.last or conclusion.error is not None or run.task.shared
        if inline or not self._large.takes(conclusion.result):
            return conclusion
        try:
            stored = await self._large.put(run.id, conclusion.result)
        except (StoreUnavailable, BusError) as error:
            log.warning("the answer of %s goes through Redis: %s", run.id, error)
            return conclusion
        return replace(conclusion, result=b"", stored=stored)

    async def _set_back(self, run: Run, conclusion: Conclusion, least_s: float, *, final: bool = False) -> None:
        outcome = await self._last_word(run, self._releases.add, lambda: setback(run, conclusion, least_s, final=final))
        metrics.GIVEN_UP.labels(conclusion.reason, outcome).inc()

    async def _finish(self, run: Run, conclusion: Conclusion) -> None:
        if await self._last_word(run, self._endings.add, lambda: ending(run, conclusion)) == "ok":
            metrics.ENDED.labels(conclusion.state, conclusion.reason).inc()
            metrics.RAN.labels(run.task.lane).observe(monotonic_s() - run.started_at_s)

    async def _last_word(self, run: Run, write: Callable[[End], Awaitable[str]], make: Callable[[], End]) -> str:
        """Repeat a run's last write until it joins what is published; answers its verdict."""
        while (verdict := await self._repeated(run.id, lambda: write(make()))).startswith("gap"):
            run.published = int(verdict[4:])
            if run.published > run.last:
                log.error("task %s has %d chunks published, this run made fewer", run.id, run.published)
                return await self._hand_back(run.hand, run.published, OUT_OF_STEP)
        if verdict == "fenced":
            metrics.FENCED.inc()
        return verdict

    async def _hand_back(self, hand: Hand, published: int, why: Parting) -> str:
        """Nothing of this run joins what is published; answers the verdict of release.lua."""

        def write() -> Awaitable[str]:
            return self._releases.add(untouched(hand, published, why))

        while (verdict := await self._repeated(hand.id, write)).startswith("gap"):
            published = int(verdict[4:])
        return verdict

    async def _repeated(self, task_id: str, write: Callable[[], Awaitable[str]]) -> str:
        """Until Redis takes it."""
        while True:
            try:
                verdict = await write()
            except BusError as error:
                log.error("the end of %s cannot be written: %s", task_id, error)
            else:
                if not verdict.startswith("wrongtype"):
                    return verdict
                log.error("task %s waits to end: %s holds a type that is not Headrace's", task_id, verdict[10:])
            await asyncio.sleep(AGAIN_S)

    def _conclude(self, run: Run, answer: Answer) -> Conclusion:
        limit_bytes = self._owner.limits.result_bytes
        try:
            return conclude(run, answer, limit_bytes)
        except Exception as error:
            log.exception("the chunks of %s do not make an answer", run.id)
            return conclude(run, failure(f"The engine's chunks do not make an answer: {error!r}"), limit_bytes)

    async def _finish_all(self, endings: Sequence[Ending]) -> Sequence[str]:
        return await finish(self._bus, self._owner, endings)

    async def _release_all(self, releases: Sequence[Release]) -> Sequence[str]:
        return await release(self._bus, self._owner, releases)
