"""Callables that the tests of the python engine run, in processes of its own."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

Body = dict[str, Any]


def touch(file: str) -> None:
    Path(file).touch()


def double(body: Body) -> Body:
    return {"double": body["n"] * 2, "pid": os.getpid()}


async def double_later(body: Body) -> Body:
    await asyncio.sleep(0)
    return double(body)


class Model:
    def load(self) -> None:
        self.loads = getattr(self, "loads", 0) + 1

    def __call__(self, body: Body) -> Body:
        return {"loads": self.loads, "pid": os.getpid()}


class AsyncModel:
    async def load(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def __call__(self, body: Body) -> Body:
        return {"same_loop": self.loop is asyncio.get_running_loop()}


def act(body: Body) -> Any:
    """What `do` says, which is mostly no good."""
    match body.get("do"):
        case "refuse":
            raise ValueError("n must not be negative")
        case "raise":
            raise KeyError("weights")
        case "sys.exit":
            sys.exit("enough")
        case "os._exit":
            os._exit(7)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            threading.Event().wait()
        case "eat":
            body["eaten"] = bytearray(os.urandom(1 << 20)) * 300
            threading.Event().wait()
        case "print":
            sys.stdout.write("to the \x1b[31moutput\n")
            os.write(2, b"\xff\xfe to the errors\n")
        case "flood":
            for n in range(1000):
                print("line", n)
        case "endless line":
            sys.stdout.write("x" * 100_000)
        case "object":
            return object()
        case "bytes":
            return b"\x89PNG"
        case "image":
            return b"\x89PNG", "image/png"
        case "no type":
            return b"\x89PNG", "png\r\n"
        case "coroutine":
            return AsyncModel.__call__(AsyncModel(), body)
        case "input":
            return {"input": sys.stdin.read()}
        case "gpu":
            return {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}  # noqa: TID251
        case "child":
            return {"child": subprocess.Popen(["sleep", "600"]).pid}
        case "fork":
            return {"fork": os.fork() or threading.Event().wait()}
    return {"pid": os.getpid(), "n": body.get("n")}


async def act_async(body: Body) -> Any:
    return act(body)


def count(body: Body) -> Any:
    return count_up(body["n"], body.get("do")) if body.get("stream") else {"n": body["n"]}


def count_up(n: int, do: str | None) -> Iterator[Any]:
    for number in range(n):
        yield {"number": number}
    act({"do": do})


async def count_async(body: Body) -> AsyncIterator[Any]:
    for number in range(body["n"]):
        await asyncio.sleep(0)
        yield {"number": number}
    act(body)


def endless(body: Body) -> Iterator[Any]:
    """Writes a file when it is closed."""
    try:
        while True:
            yield {"pid": os.getpid()}
    finally:
        Path(body["file"]).touch()


async def wait(body: Body) -> Any:
    """Waits for ever; writes files when it begins and when it is cancelled."""
    touch(body["begun"])
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        touch(body["cancelled"])
        raise


class Meeting:
    """Answers when as many calls as `n` says are inside at once."""

    async def load(self) -> None:
        self.inside, self.all = 0, asyncio.Event()

    async def __call__(self, body: Body) -> Any:
        self.inside += 1
        if self.inside == body["n"]:
            self.all.set()
        await self.all.wait()
        return act(body)


def batch(bodies: list[Body]) -> Any:
    """One killer, or one that raises, is enough for all."""
    return [{"together": len(bodies), "pid": os.getpid(), **(act(body) or {})} for body in bodies]


def batch_of_its_own_errors(bodies: list[Body]) -> Any:
    return [ValueError("negative") if body["n"] < 0 else KeyError("odd") if body["n"] % 2 else body for body in bodies]


def batch_too_short(bodies: list[Body]) -> Any:
    return bodies[1:]


def batch_too_short_with_others(bodies: list[Body]) -> Any:
    return [] if any(body.get("do") == "short" for body in bodies) else bodies


def batch_as_dict(bodies: list[Body]) -> Any:
    return {"n": len(bodies)}


async def batch_async(bodies: list[Body]) -> Any:
    await asyncio.sleep(0)
    return batch(bodies)


class Arrays:
    def __call__(self, bodies: list[Body]) -> Any:
        import numpy

        return numpy.array([[body["n"], body["n"] / 2] for body in bodies])


class Gated:
    """Waits, once it runs, until the file is there; then says in which order it was called."""

    def load(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, body: Body) -> Any:
        self.seen.append(body["n"])
        while body.get("gate") and not Path(body["gate"]).exists():
            threading.Event().wait(0.002)
        return {"seen": self.seen}


class NoWeights:
    def load(self) -> None:
        raise RuntimeError("there are no weights")

    def __call__(self, body: Body) -> Body:
        return body


class Forever:
    def load(self) -> None:
        threading.Event().wait()

    def __call__(self, body: Body) -> Body:
        return body


class AsyncLoadOnly:
    async def load(self) -> None: ...

    def __call__(self, body: Body) -> Body:
        return body


class WhileFileIsThere:
    """Cannot be loaded without the file that the environment names."""

    def load(self) -> None:
        if not Path(os.environ["LOADS_WHILE"]).exists():  # noqa: TID251
            raise RuntimeError("the file is gone")

    def __call__(self, body: Body) -> Any:
        return act(body)


class SlowToLoad:
    """Loads for as long as the file that the environment names is not there."""

    def load(self) -> None:
        while not Path(os.environ["LOADS_WHEN"]).exists():  # noqa: TID251
            threading.Event().wait(0.002)

    def __call__(self, bodies: list[Body]) -> Any:
        return batch(bodies)


def tell(body: Any) -> Any:
    """The body as JSON, its files described."""
    match body:
        case dict():
            return {name: tell(value) for name, value in body.items()}
        case list():
            return [tell(value) for value in body]
        case str() | int() | None:
            return body
    return {"filename": body.filename, "content_type": body.content_type, "data": list(body.data)}


def tell_batch(bodies: list[Any]) -> Any:
    return tell(bodies)


async def tell_async(body: Any) -> Any:
    return tell(body)


def reverse(body: Body) -> Any:
    """A file in, a file out."""
    given = body["image"]
    return given.data[::-1], given.content_type, body.get("name", f"reversed {given.filename}")


def reverse_batch(bodies: list[Body]) -> Any:
    return [reverse(body) for body in bodies]


def much(body: Body) -> Any:
    """So many bytes; without any, how many this process holds since the first call."""
    tracemalloc.start()
    if body.get("bytes"):
        return bytes(body["bytes"]), "application/octet-stream"
    return {"held": tracemalloc.get_traced_memory()[0]}


async def much_async(body: Body) -> Any:
    return much(body)


not_callable = 3
