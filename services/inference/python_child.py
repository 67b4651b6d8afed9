"""One process of the python engine: it loads the callable, then runs what comes over the socket that is its standard input.

    python -m services.inference.python_child CALLABLE PATH single|batched

A sync callable has the main thread to itself, as libraries expect that hold a GPU or signal handlers. An async one runs in an
event loop, as many times at once as the engine sends work. Whatever a callable raises ends its own work only; what ends this
process is found out by the engine. What is printed goes to the log of the worker.
"""

import asyncio
import faulthandler
import importlib
import inspect
import logging
import os
import select
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from services.inference.python_frames import (
    LENGTH,
    Begun,
    Broken,
    Done,
    Fault,
    Order,
    Piece,
    Ready,
    Report,
    Unready,
    Value,
    Work,
    frame,
    orders,
    read_frame,
)
from services.inference.python_results import bounded, fault_of, read_body, result, spread, to_json
from shared.parent import die_with_parent

Target = Callable[[Any], Any]


def main() -> None:
    name, path, mode = sys.argv[1:]
    die_with_parent()
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    link, batched = _take_link(), mode == "batched"
    with loading(link):
        target, load = find(name, path)
    if is_async(target):
        asyncio.run(AsyncCalls(target, batched=batched).serve(link, load))
        return
    with loading(link):
        if inspect.isawaitable(load()):
            raise TypeError(f"load() of {name} is async, its __call__ is not: make both async, or neither")
    SyncCalls(link, target, batched=batched).serve()


@contextmanager
def loading(link: socket.socket) -> Iterator[None]:
    """End this process with what went wrong told to the engine."""
    try:
        yield
    except BaseException:  # noqa: BLE001  a module may call sys.exit(): whoever starts the engine has to read that too
        link.sendall(frame(Unready(traceback.format_exc())))
        sys.exit(1)


def _take_link() -> socket.socket:
    """The socket that standard input is, moved away: the callable, and what it starts, find an empty input."""
    link = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return link


def find(name: str, path: str) -> tuple[Target, Callable[[], Any]]:
    """The callable, and what loads it. A class is instantiated. Raises: whatever its module raises."""
    if path:
        sys.path.insert(0, path)
    module, _, names = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in names.split("."):
        found = getattr(found, part)
    load = None
    if inspect.isclass(found):
        found = found()
        load = getattr(found, "load", None)
    if not callable(found):
        raise TypeError(f"{name} is {found!r}, which cannot be called")
    return found, load or (lambda: None)


def is_async(target: Target) -> bool:
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    parts = (target, getattr(type(target), "__call__", None))  # noqa: B004  whether it can be called is known
    return any(kind(part) for kind in kinds for part in parts)


class SyncCalls:
    """A callable that is called in this thread, one work at a time."""

    def __init__(self, link: socket.socket, target: Target, *, batched: bool) -> None:
        self._link, self._target = link, target
        self._run = self._batch if batched else self._single

    def serve(self) -> None:
        self._send(Ready(is_async=False))
        while self._serve_one():
            pass

    def _serve_one(self) -> bool:
        """False: the engine has ended. A function of its own, for its variables may be large, and end with it."""
        order = self._receive()
        if isinstance(order, Work):  # what is cancelled has ended by the time that this is read
            self._send(Begun(order.id))
            try:
                report: Report = self._run(order)
            except BaseException as error:  # noqa: BLE001  SystemExit and the like end their own work only
                report = Broken(order.id, fault_of(error))
            self._send(report)
        return order is not None

    def _batch(self, work: Work) -> Report:
        given = [read_body(body) for body in work.bodies]
        asked = [body for body in given if not isinstance(body, Fault)]
        return Done(work.id, spread(given, self._target(asked) if asked else []))

    def _single(self, work: Work) -> Report:
        body = read_body(work.bodies[0])
        made = body if isinstance(body, Fault) else self._target(body)
        if not isinstance(made, Iterator):
            return Done(work.id, [result(made)])
        for value in made:
            if self._cancelled():
                if inspect.isgenerator(made):
                    made.close()
                return Broken(work.id, Fault(500, "cancelled"))
            self._send(Piece(work.id, to_json(value)))
        return Done(work.id, [Value(b"")])

    def _cancelled(self) -> bool:
        """While one work runs nothing else comes."""
        return bool(select.select([self._link], [], [], 0)[0]) and self._receive() is not None

    def _send(self, report: Report) -> None:
        self._link.sendall(bounded(report))

    def _receive(self) -> Order | None:
        head = self._read(LENGTH.size)
        data = self._read(LENGTH.unpack(head)[0]) if head else b""
        return orders.decode(data) if data else None

    def _read(self, size: int) -> bytearray:
        """Empty: the engine has ended."""
        data, have = bytearray(size), 0
        with memoryview(data) as left:
            while have < size:
                more = self._link.recv_into(left[have:])
                if not more:
                    return bytearray()
                have += more
        return data


class AsyncCalls:
    """A callable that runs in this thread's event loop, several works at once."""

    def __init__(self, target: Target, *, batched: bool) -> None:
        self._target = target
        self._run = self._batch if batched else self._single
        self._working: dict[int, asyncio.Task[Report]] = {}

    async def serve(self, link: socket.socket, load: Callable[[], Any]) -> None:
        with loading(link):
            loaded = load()
            if inspect.isawaitable(loaded):
                await loaded
        reader, self._writer = await asyncio.open_unix_connection(sock=link)
        self._writer.write(frame(Ready(is_async=True)))
        while await self._serve_one(reader):
            pass

    async def _serve_one(self, reader: asyncio.StreamReader) -> bool:
        """As that of SyncCalls."""
        data = await read_frame(reader, sys.maxsize)  # the engine has limits of its own
        if data is None:
            return False
        order = orders.decode(data)
        if isinstance(order, Work):
            self._begin(order)
        elif (working := self._working.get(order.id)) is not None:
            working.cancel()
        return True

    def _begin(self, work: Work) -> None:
        def ended(task: asyncio.Task[Report]) -> None:
            del self._working[work.id]
            report = Broken(work.id, Fault(500, "cancelled")) if task.cancelled() else task.result()
            self._writer.write(bounded(report))

        self._writer.write(frame(Begun(work.id)))
        self._working[work.id] = task = asyncio.create_task(self._guarded(work))
        task.add_done_callback(ended)

    async def _guarded(self, work: Work) -> Report:
        try:
            return await self._run(work)
        except BaseException as error:  # noqa: BLE001  SystemExit would leave the loop through the task
            return Broken(work.id, fault_of(error))

    async def _batch(self, work: Work) -> Report:
        given = [read_body(body) for body in work.bodies]
        asked = [body for body in given if not isinstance(body, Fault)]
        made = self._target(asked) if asked else []
        return Done(work.id, spread(given, await made if inspect.isawaitable(made) else made))

    async def _single(self, work: Work) -> Report:
        body = read_body(work.bodies[0])
        if isinstance(body, Fault):
            return Done(work.id, [body])
        made = self._target(body)
        made = await made if inspect.isawaitable(made) else made
        if not isinstance(made, AsyncIterator):
            return Done(work.id, [result(made)])
        async for value in made:
            self._writer.write(frame(Piece(work.id, to_json(value))))
            await self._writer.drain()
        return Done(work.id, [Value(b"")])


if __name__ == "__main__":
    main()
