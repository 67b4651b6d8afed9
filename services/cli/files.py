"""`headrace files`: put files into the object store, list them, get them back, remove them."""

import argparse
import sys
from pathlib import Path
from typing import IO

import httpx
from rich.console import Console
from rich.table import Table

from services.cli.doors import complaint, http_door, read_json
from services.cli.failure import OK, TASK_FAILED, USAGE, Failure
from services.cli.tasks import duration
from services.cli.view import View, to_json
from shared.clock import now_ms


async def run(arguments: argparse.Namespace) -> int:
    async with http_door(arguments.url) as client:
        match arguments.action:
            case "list":
                return await show_many(client, arguments)
            case "put":
                return await put(client, arguments)
            case "get":
                return await get(client, arguments)
            case _:
                return await remove(client, arguments)


async def show_many(client: httpx.AsyncClient, arguments: argparse.Namespace) -> int:
    asked = {"limit": str(arguments.limit), "purpose": arguments.purpose}
    page = read_json(await client.get("/v1/files", params=asked))
    if arguments.json:
        for view in page["data"]:
            print(to_json(view))
    elif page["data"]:
        show_table(page["data"])
    if page["has_more"]:
        print("there are more: --limit", file=sys.stderr)
    elif not page["data"]:
        print("no files", file=sys.stderr)
    return OK


def show_table(views: list[View]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("ID", no_wrap=True, overflow="fold")
    table.add_column("PURPOSE", no_wrap=True)
    for heading in ("BYTES", "LINES", "AGE", "LEFT"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("NAME", overflow="fold")
    now = now_ms()
    for view in views:
        counts = (str(view["bytes"]), str(view.get("lines", "")))
        times = (duration(view["created_at"] * 1000, now), duration(now, view["expires_at"] * 1000))
        table.add_row(view["id"], view["purpose"], *counts, *times, view["filename"])
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)


async def put(client: httpx.AsyncClient, arguments: argparse.Namespace) -> int:
    fields = {"purpose": arguments.purpose}
    if arguments.keep_s:
        fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(arguments.keep_s)}
    for path in arguments.paths:
        try:
            with path.open("rb") as content:
                answer = await client.post("/v1/files", files={"file": (path.name, content)}, data=fields)
        except OSError as error:
            raise Failure(f"{path} cannot be read: {error.strerror}", code=USAGE) from None
        view = read_json(answer)
        print(to_json(view) if arguments.json else view["id"])
        if details := view.get("status_details"):
            print(f"headrace: {path}: {details}", file=sys.stderr)
    return OK


async def get(client: httpx.AsyncClient, arguments: argparse.Namespace) -> int:
    """A file is written beside its place and moved there when it is whole, so that half of one is never taken for it."""
    path: Path | None = arguments.output
    if path is None:
        await fetch(client, arguments.id, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return OK
    begun = path.with_name(f"{path.name}.part")
    try:
        with begun.open("wb") as target:
            await fetch(client, arguments.id, target)
        begun.replace(path)
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from None
    finally:
        begun.unlink(missing_ok=True)
    return OK


async def fetch(client: httpx.AsyncClient, file_id: str, target: IO[bytes]) -> None:
    """Raises: Failure, OSError."""
    async with client.stream("GET", f"/v1/files/{file_id}/content") as answer:
        if answer.is_error:
            await answer.aread()
            raise Failure(complaint(answer))
        async for piece in answer.aiter_bytes():
            target.write(piece)


async def remove(client: httpx.AsyncClient, arguments: argparse.Namespace) -> int:
    code = OK
    for file_id in arguments.ids:
        answer = await client.delete(f"/v1/files/{file_id}")
        if answer.is_error:
            print(f"headrace: {complaint(answer)}", file=sys.stderr)
            code = TASK_FAILED
        else:
            print(to_json(read_json(answer)) if arguments.json else f"{file_id} removed")
    return code
