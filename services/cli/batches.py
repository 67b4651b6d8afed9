"""`headrace batches`: make a batch of a file, watch it, list batches, cancel them."""

import argparse
import asyncio
import secrets
import sys
from pathlib import Path

import httpx
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from services.cli.doors import complaint, http_door, read_json
from services.cli.failure import OK, TASK_FAILED, USAGE, Failure
from services.cli.progress import show_meter
from services.cli.requests import Refused, call
from services.cli.tasks import duration
from services.cli.view import View, to_json
from shared.clock import now_ms
from shared.errors import UNDECODABLE
from shared.request import CHAT

ENDED = ("completed", "failed", "cancelled", "expired")
LOOK_S = 1.0
"""Between two looks of `watch`."""


class Line(Struct):
    url: str = CHAT


async def run(arguments: argparse.Namespace) -> int:
    async with http_door(arguments.url) as client:
        match arguments.action:
            case "create":
                return await create(client, arguments)
            case "list":
                return await show_many(client, arguments)
            case "watch":
                return await watch(client, arguments.id, json=arguments.json)
            case _:
                return await cancel(client, arguments)


async def create(client: httpx.AsyncClient, arguments: argparse.Namespace) -> int:
    path: Path = arguments.file
    try:
        endpoint = arguments.endpoint or endpoint_of(path)
        with path.open("rb") as content:
            sent = await client.post("/v1/files", files={"file": (path.name, content)}, data={"purpose": "batch"})
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}", code=USAGE) from None
    asked = {"input_file_id": read_json(sent)["id"], "endpoint": endpoint, "completion_window": arguments.window}
    if arguments.webhook:
        asked["webhook"] = arguments.webhook
    view = await made(client, asked)
    if arguments.watch:
        print(f"headrace: {view['id']}", file=sys.stderr)
        return await watch(client, view["id"], json=arguments.json)
    print(to_json(view) if arguments.json else view["id"])
    return OK


async def made(client: httpx.AsyncClient, asked: dict[str, str]) -> View:
    """The batch. If it is refused, nothing stays of its upload. A server that is away for a restart is waited for: it makes one batch
    of a key, however often it is asked. Raises: Failure."""
    file_id = asked["input_file_id"]
    key = {"idempotency-key": f"cli-{secrets.token_hex(12)}"}
    try:
        return await call(client, "POST", "/v1/batches", json=asked, headers=key)
    except Refused as refused:
        raise Failure(f"{refused}\n{await taken_back(client, file_id)}") from None
    except Failure as failure:
        unknown = f"{file_id} was uploaded; whether a batch was made of it, `headrace batches list` tells."
        raise Failure(f"{failure}\n{unknown}", code=failure.code) from None


async def taken_back(client: httpx.AsyncClient, file_id: str) -> str:
    """What became of an upload that is of no use: in a sentence."""
    try:
        answer = await client.delete(f"/v1/files/{file_id}")
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
    else:
        if answer.is_success:
            return "Its upload was removed."
        why = complaint(answer)
    return f"Its upload stays ({why}); `headrace files rm {file_id}` removes it."


def endpoint_of(path: Path) -> str:
    """What the first line asks for. Raises: OSError."""
    with path.open("rb") as content:
        try:
            return msgspec.json.decode(content.readline(), type=Line).url
        except UNDECODABLE:
            return CHAT


async def watch(client: httpx.AsyncClient, batch_id: str, *, json: bool) -> int:
    """Until it has ended; Ctrl-C ends the watching only. A server that is away for a restart is waited for. Raises: Failure."""
    try:
        view = await seen_to_end(client, batch_id)
    except Refused as refused:
        raise Failure(str(refused)) from None
    if json:
        print(to_json(view))
    else:
        show(view)
    return OK if view["status"] == "completed" and not counts(view)[1] else TASK_FAILED


async def seen_to_end(client: httpx.AsyncClient, batch_id: str) -> View:
    """As it ended; meanwhile a meter shows how it goes. Raises: Refused, Failure."""
    view = await call(client, "GET", f"/v1/batches/{batch_id}")
    done, failed = counts(view)
    with show_meter("items", view["request_counts"]["total"] or None, done, failed) as meter:
        while view["status"] not in ENDED:
            await asyncio.sleep(LOOK_S)
            view = await call(client, "GET", f"/v1/batches/{batch_id}")
            meter.tell("" if view["status"] in ("in_progress", *ENDED) else view["status"])
            more, more_failed = counts(view)
            for _ in range(more - done):
                meter.count(failed=False)
            for _ in range(more_failed - failed):
                meter.count(failed=True)
            done, failed = more, more_failed
    return view


def show(view: View) -> None:
    print(f"{'status':<8} {view['status']}")
    print(f"{'items':<8} {told(view)}")
    for name, field in (("output", "output_file_id"), ("errors", "error_file_id")):
        if view[field]:
            print(f"{name:<8} {view[field]}")
    for fault in (view["errors"] or {"data": []})["data"]:
        where = f"line {fault['line']}: " if fault.get("line") else ""
        print(f"headrace: {where}{fault['message']}", file=sys.stderr)


def counts(view: View) -> tuple[int, int]:
    """Completed, and ended in any other way."""
    said = view["request_counts"]
    return said["completed"], said["failed"] + said["cancelled"] + said["expired"]


def told(view: View) -> str:
    said = view["request_counts"]
    ends = ", ".join(f"{said[end]} {end}" for end in ENDED if said[end])
    return f"{said['total']}" + (f": {ends}" if ends else "")


async def show_many(client: httpx.AsyncClient, arguments: argparse.Namespace) -> int:
    page = read_json(await client.get("/v1/batches", params={"limit": str(arguments.limit)}))
    if arguments.json:
        for view in page["data"]:
            print(to_json(view))
    elif page["data"]:
        show_table(page["data"])
    if page["has_more"]:
        print("there are more: --limit", file=sys.stderr)
    elif not page["data"]:
        print("no batches", file=sys.stderr)
    return OK


def show_table(views: list[View]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("ID", no_wrap=True, overflow="fold")
    for heading in ("STATUS", "AGE", "ITEMS"):
        table.add_column(heading, no_wrap=True)
    for view in views:
        table.add_row(view["id"], view["status"], duration(view["created_at"] * 1000, now_ms()), told(view))
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)


async def cancel(client: httpx.AsyncClient, arguments: argparse.Namespace) -> int:
    code = OK
    for batch_id in arguments.ids:
        answer = await client.post(f"/v1/batches/{batch_id}/cancel")
        if answer.is_error:
            print(f"headrace: {complaint(answer)}", file=sys.stderr)
            code = TASK_FAILED
        else:
            view = read_json(answer)
            print(to_json(view) if arguments.json else f"{batch_id} {view['status']}")
    return code
