"""A callable of the user's behind the port: a recommender, an image model, anything that Python can call.

    run() -> (files of the body) -> Item -> Places -> Job -> Process.send  ~~ socket ~~  python_child.py -> callable
                                              ^ again, in halves or alone       |
                                              `---------------- Broken, or the process has ended

It runs in processes of its own (python_process.py), so that whatever it does, print, block, leak, exit or crash, costs the
worker nothing and other calls no more than a delay. docs/python-engine.md is the contract with the callable.

Rejected: threads instead of processes (a thread cannot be stopped, and shares its crash); multiprocessing (it pickles what it
passes, which code of others may choose, and its pools hang when a process of theirs is killed); callables that read files
themselves (each would need the keys of the store, and would have to know whose files it may read).
"""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from services.inference.engine import Answer, Call, CannotResume, Capacity, Chunk, EngineDead
from services.inference.python_answers import refuse, without_files
from services.inference.python_batches import Item
from services.inference.python_files import keep, named_files
from services.inference.python_frames import Body, Value
from services.inference.python_places import BACKOFF_S, Places
from shared.engine_options import PythonOptions
from shared.errors import ConfigError, ObjectMissing, RequestError, StoreUnavailable
from shared.forms import FORM
from shared.large import PATIENCE_S
from shared.messages import encode
from shared.routes import other_than_json


class PythonEngine:
    name = "python"
    remote = False

    def __init__(
        self,
        *,
        model: str,
        options: PythonOptions,
        slots: int = 0,
        environ: Mapping[str, str] | None = None,
        backoff_s: float = BACKOFF_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`patience_s`: for the files of a call, to be read, and for one to be kept. A store that hangs must not hold slots."""
        self._options, self._patience_s = options, patience_s
        environ = os.environ if environ is None else environ  # noqa: TID251  of the processes, and its GPUs
        self._places = Places(model, options, environ, backoff_s, self._die)
        self._slots = slots or self._places.count * options.batch_size * options.concurrency
        self._items: set[Item] = set()
        self._dead = ""

    # -- life

    async def start(self) -> None:
        self._check()
        await self._places.start()

    def _check(self) -> None:
        options = self._options
        if not options.callable:
            raise ConfigError("python.callable is missing: name what is to be called, 'package.module:name'")
        if options.path and not Path(options.path).is_dir():
            raise ConfigError(f"python.path is {options.path!r}: there is no such folder, seen from {Path.cwd()}")
        if options.memory_mb and sys.platform != "linux":
            raise ConfigError("python.memory_mb needs Linux: elsewhere memory cannot be watched. Leave it out.")

    async def stop(self) -> None:
        self._die("the engine is stopping")
        await self._places.stop()

    async def health(self) -> None:
        if self._dead:
            raise EngineDead(self._dead)

    def capacity(self) -> Capacity:
        """What waits for a place counts as running: it is bounded by `slots`, sorted by priority, and cheap to cancel."""
        return Capacity(slots=self._slots, running=len(self._items), steps=self._places.steps)

    def _die(self, why: str) -> None:
        """Hand back everything; nothing more can be run."""
        self._dead = self._dead or why
        self._places.close()
        for item in list(self._items):
            item.tell(EngineDead(self._dead))

    # -- one call

    async def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        await self.health()
        if call.published:
            raise CannotResume("what a callable streams cannot be continued")
        if (refused := self._refusal(call)) is not None:
            yield refused
            return
        item = Item(call.task_id, Body(call.body, other_than_json(call.content_type)), call.priority)
        self._items.add(item)
        try:
            await self._place(item, call)
            while isinstance(piece := await item.pieces.get(), Chunk):
                yield piece
            if isinstance(piece, EngineDead):
                raise piece
            yield piece if isinstance(piece, Answer) else await self._kept(call, piece)
        finally:
            self._items.discard(item)
            self._places.leave(item)
            item.let_go()

    def _refusal(self, call: Call) -> Answer | None:
        served = self._options.routes
        if served and call.route not in served:
            return refuse(
                404, f"This model does not serve {call.route}. It serves: {', '.join(served)}.", "route_not_served"
            )
        if (other := other_than_json(call.content_type)) and not other.lower().startswith(FORM):
            return refuse(415, f"The python engine takes JSON and {FORM}, not {other[:100]}.", "not_json")
        return None

    async def _place(self, item: Item, call: Call) -> None:
        """Have it run, with the files that it names; if they cannot be had, it has its answer. Raises: BusError."""
        if limit_mb := self._options.files_mb:
            try:
                async with asyncio.timeout(self._patience_s):
                    files = await named_files(call, limit_mb * 1_000_000)
            except (RequestError, StoreUnavailable, ObjectMissing, TimeoutError) as error:
                item.tell(without_files(error))
            else:
                item.body = Body(item.body.data, item.body.content_type, files)
        if not item.over:  # the engine may have died meanwhile
            self._places.add(item)

    async def _kept(self, call: Call, made: Value) -> Answer:
        """Raises: BusError."""
        try:
            async with asyncio.timeout(self._patience_s):
                return Answer(status=200, body=encode(await keep(call, made)))
        except (RequestError, StoreUnavailable, TimeoutError) as error:
            return without_files(error)
