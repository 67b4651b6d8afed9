"""`headrace submit`: one task, or a file of them with a bounded number under way at once."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

import httpx
import msgspec

from services.cli.doors import http_door, knock
from services.cli.failure import OK, TASK_FAILED, Failure
from services.cli.line import of_view
from services.cli.progress import Ticker, show_progress
from services.cli.requests import Refused, Sender, make_task
from services.cli.view import View, text_of, to_json

Lines = Iterator[tuple[int, str]]


class Tally(msgspec.Struct):
    done: int = 0
    failed: int = 0


async def run(arguments: argparse.Namespace) -> int:
    async with http_door(arguments.url, connections=arguments.in_flight) as client:
        await knock(client)
        if arguments.file is None:
            return await _one(client, arguments)
        return await _many(Sender(client, wait=not arguments.no_wait), arguments)


async def _one(client: httpx.AsyncClient, arguments: argparse.Namespace) -> int:
    body = arguments.body or msgspec.json.encode({"input_text": arguments.text}).decode()
    ticker = Ticker()
    on_view = (lambda view: ticker.show(of_view(view))) if ticker.live else None
    try:
        view = await Sender(client, wait=not arguments.no_wait, on_view=on_view).send(
            make_task(body, arguments.session)
        )
    except Refused as refused:
        raise Failure(f"refused: {refused}", code=TASK_FAILED) from None
    finally:
        ticker.clear()
    with open_output(arguments.output) as output:
        if arguments.json:
            print(to_json(view), file=output)
        else:
            print(view["id"] if arguments.no_wait else text_of(view), file=output)
    return TASK_FAILED if has_failed(view) else OK


async def _many(sender: Sender, arguments: argparse.Namespace) -> int:
    tally = Tally()
    with ExitStack() as stack:
        lines = stack.enter_context(open_lines(arguments.file))
        output = stack.enter_context(open_output(arguments.output))
        step = stack.enter_context(show_progress("tasks", count_lines(arguments.file)))

        async def work() -> None:
            for number, line in lines:
                view = await _settle(sender, line, arguments.session)
                failed = has_failed(view)
                tally.failed += failed
                tally.done += not failed
                print(to_json({"line": number, **view}), file=output, flush=True)
                step(1)

        await _together(work, arguments.in_flight)
    print(f"{tally.done} done, {tally.failed} failed", file=sys.stderr)
    return TASK_FAILED if tally.failed else OK


async def _settle(sender: Sender, line: str, session: str) -> View:
    """A refusal is a result too; the other lines go on."""
    try:
        return await sender.send(make_task(line, session))
    except Refused as refused:
        return {"status": "refused", "error": refused.error}


async def _together(work: Callable[[], Coroutine[None, None, None]], count: int) -> None:
    """`count` at once; the first error ends all."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def has_failed(view: View) -> bool:
    return view["status"] not in ("pending", "processing", "completed")


@contextmanager
def open_lines(name: str) -> Iterator[Lines]:
    """Numbered from 1, without the empty ones; read as they are needed. Raises: Failure."""
    try:
        file = sys.stdin if name == "-" else Path(name).open(encoding="utf-8")  # noqa: SIM115  closed below
    except OSError as error:
        raise Failure(f"{name} cannot be read: {error.strerror}") from None
    with file:
        yield ((number, line) for number, line in enumerate(file, 1) if line.strip())


@contextmanager
def open_output(path: Path | None) -> Iterator[TextIO]:
    """Raises: Failure."""
    if path is None:
        yield sys.stdout
        return
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from None
    with file:
        yield file


def count_lines(name: str) -> int | None:
    """None for a pipe, which can be read only once."""
    if not Path(name).is_file():
        return None
    with Path(name).open("rb") as file:
        return sum(1 for line in file if line.strip())
