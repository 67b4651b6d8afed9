"""`headrace submit`: one task, or a file of them."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import httpx
import msgspec

from services.cli.doors import http_door, knock
from services.cli.failure import OK, TASK_FAILED, USAGE, Failure
from services.cli.line import of_view
from services.cli.progress import Ticker
from services.cli.requests import Refused, Sender, make_task
from services.cli.view import counts_as_failed, text_of, to_json

OF_A_FILE = ("in_order", "restart", "in_flight")


async def run(arguments: argparse.Namespace) -> int:
    name = arguments.named if arguments.file is None else arguments.file
    if name is not None:
        from services.cli.bulk import submit_file

        if arguments.restart and arguments.output is None:
            raise Failure("--restart replaces an output: name it with -o", code=USAGE)
        return await submit_file(name, arguments)
    for option in OF_A_FILE:
        if getattr(arguments, option):
            raise Failure(f"--{option.replace('_', '-')} is for a file of tasks", code=USAGE)
    async with http_door(arguments.url) as client:
        await knock(client)
        return await _one(client, arguments)


async def _one(client: httpx.AsyncClient, arguments: argparse.Namespace) -> int:
    shorthand = msgspec.json.encode({"input_text": arguments.text})
    body = shorthand if arguments.body is None else arguments.body.encode()
    ticker = Ticker()
    on_view = (lambda view: ticker.show(of_view(view))) if ticker.live else None
    try:
        view = await Sender(client, wait=not arguments.no_wait, on_view=on_view).send(
            make_task(body, arguments.session, lane=arguments.lane or "")
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
    return TASK_FAILED if counts_as_failed(view["status"]) else OK


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
