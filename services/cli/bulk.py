"""A file of tasks, with a bounded number under way at once: what is read, sent, awaited and held at any moment is bounded too.

A task's key follows from the name of the run, the number of its line and its content. The name is made up when the output is
begun, so the same file into another output is other tasks, and is not answered from the first run; the number tells equal lines
apart; the content makes sure that a key can never stand for something else than it did. So a run that goes on after a kill sends
each unfinished line with the key that it had, and the server finds the task that is under way, or its result.
"""

import argparse
import asyncio
import hashlib
import sys
from asyncio import Semaphore, TaskGroup
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from services.cli.arguments import IN_FLIGHT
from services.cli.courier import Courier, open_session
from services.cli.doors import http_door, knock
from services.cli.failure import OK, TASK_FAILED, USAGE, Failure
from services.cli.lines import Line, Source, open_source
from services.cli.progress import Meter, show_meter
from services.cli.requests import Asked, Refused, make_task
from services.cli.results import Results, Run, open_results
from services.cli.view import counts_as_failed

LANE = "batch"
"""Of a task that names none: many at once fill what is idle, and hold up nobody."""
AHEAD = 8
"""Results that wait for an earlier one with --in-order, for each task under way: more even out more, and hold more memory."""


async def submit_file(name: str, arguments: argparse.Namespace) -> int:
    async with http_door(arguments.url) as client:
        await knock(client)
    path: Path | None = arguments.output
    with open_source(name) as source:
        if path is not None and source.is_same(path):
            raise Failure(f"{path} holds the tasks; name another file for the results", code=USAGE)
        run = Run(source.identity, wait=not arguments.no_wait, in_order=arguments.in_order)
        with open_results(path, run, restart=arguments.restart) as results:
            await _run(source, results, arguments)
    earlier = f" ({results.earlier} of them by an earlier run)" if results.earlier else ""
    print(f"{results.done} done, {results.failed} failed{earlier}", file=sys.stderr)
    return TASK_FAILED if results.failed else OK


async def _run(source: Source, results: Results, arguments: argparse.Namespace) -> None:
    """Raises: Failure."""
    total = source.identity.lines if source.identity is not None else None
    try:
        async with open_session(arguments.url, arguments.in_flight or IN_FLIGHT) as session:
            with show_meter("tasks", total, results.done, results.failed) as meter:
                courier = Courier(session, arguments.url, meter.tell, wait=results.run.wait)
                await Bulk(courier, results, meter, arguments).run(source.lines())
    except Failure as failure:
        raise Failure(f"{failure}\n{_how_to_go_on(results)}", code=failure.code) from None
    except asyncio.CancelledError:
        print(f"headrace: interrupted. {_how_to_go_on(results)}", file=sys.stderr)
        raise


def _how_to_go_on(results: Results) -> str:
    finished = f"{results.done + results.failed} finished"
    if results.resumable:
        return f"{finished}; the same command goes on from there, and loses nothing of those under way."
    return f"{finished}. Only a file of tasks with an output file (-o) can be gone on with."


class Bulk:
    def __init__(self, courier: Courier, results: Results, meter: Meter, arguments: argparse.Namespace) -> None:
        self._courier, self._results, self._meter = courier, results, meter
        self._session, self._lane = arguments.session, arguments.lane or LANE
        in_flight = arguments.in_flight or IN_FLIGHT
        self._under_way, self._unwritten = Semaphore(in_flight), Semaphore(in_flight * AHEAD)

    async def run(self, lines: AsyncIterator[Line]) -> None:
        """The first Failure ends all. Raises: Failure, OSError."""
        try:
            async with TaskGroup() as group:
                async for line in lines:
                    if self._results.has(line.number):
                        continue
                    await self._unwritten.acquire()
                    await self._under_way.acquire()
                    self._results.expect(line.number)
                    group.create_task(self._settle(line))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _settle(self, line: Line) -> None:
        """A refusal is a result too; the other lines go on."""
        asked = None
        try:
            asked = self._asked(line)
            status, content = await self._courier.carry(asked)
            failed = counts_as_failed(status)
        except Refused as refused:
            failed, content = True, msgspec.json.encode({"status": "refused", "error": refused.error})
        finally:
            self._under_way.release()
        text = _numbered(line.number, asked, content)
        for fails in self._results.write(line.number, text, failed=failed):
            self._unwritten.release()
            self._meter.count(failed=fails)

    def _asked(self, line: Line) -> Asked:
        """Raises: Refused."""
        if line.fault:
            raise Refused(line.fault)
        of = hashlib.blake2b(f"{self._results.run.name}:{line.number}:".encode(), digest_size=16)
        of.update(line.content)
        return make_task(line.content, self._session, lane=self._lane, key=f"cli-{of.hexdigest()}")


def _numbered(number: int, asked: Asked | None, content: bytes) -> bytes:
    """The object `content` with the line's number before its fields, which stay byte for byte as they came."""
    custom_id = (
        b"" if asked is None or asked.custom_id is None else b'"custom_id":%b,' % msgspec.json.encode(asked.custom_id)
    )
    return b'{"line":%d,%b%b\n' % (number, custom_id, content.lstrip()[1:])
