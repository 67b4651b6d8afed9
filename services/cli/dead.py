"""`headrace dead`: what was given up: look at it, have it run again, or drop it."""

import argparse
import sys

import httpx
import msgspec
from rich.console import Console
from rich.table import Table

from services.cli.doors import http_door, knock
from services.cli.failure import OK, TASK_FAILED, USAGE, Failure
from services.cli.progress import show_progress
from services.cli.requests import Refused, call
from services.cli.tasks import attempts, duration
from services.cli.view import View, to_json
from shared.clock import now_ms

PAGE = 100
"""Letters that one request is about; the server allows no more."""
SHOWN = ("id", "kind", "task", "code", "reason", "model")
DONE = {"requeue": "requeued", "drop": "dropped"}


async def run(arguments: argparse.Namespace) -> int:
    if arguments.action in DONE:
        check_choice(arguments)
    try:
        async with http_door(arguments.url) as client:
            await knock(client)
            match arguments.action:
                case "list":
                    return await show_many(client, arguments)
                case "show":
                    return await show_one(client, arguments)
                case _ if arguments.ids:
                    return await act_on_each(client, arguments)
                case _:
                    return await act_on_all(client, arguments)
    except Refused as refused:
        raise Failure(str(refused)) from None


async def show_many(client: httpx.AsyncClient, arguments: argparse.Namespace) -> int:
    letters: list[View] = []
    page: View = {"has_more": True, "next": None}
    while page["has_more"] and (missing := arguments.limit - len(letters)):
        page = await call(client, "GET", "/v1/dead", params=filters(arguments, page["next"], min(missing, PAGE)))
        letters += page["data"]
    if arguments.json:
        for letter in letters:
            print(to_json(letter))
    elif letters:
        show_table(letters)
    if page["has_more"]:
        print("there are more: --limit", file=sys.stderr)
    elif not letters:
        print("no dead letters", file=sys.stderr)
    return OK


async def show_one(client: httpx.AsyncClient, arguments: argparse.Namespace) -> int:
    letter = await call(client, "GET", f"/v1/dead/{arguments.id}")
    if arguments.json:
        print(to_json(letter))
        return OK
    for name in SHOWN:
        if value := letter.get(name):
            print(f"{name:<8} {value}")
    print(f"{'age':<8} {duration(letter['created_at_ms'], now_ms())}")
    for line in attempts(letter):
        print(f"{'tried':<8} {line}")
    for name in ("spec", "body"):
        if name in letter:
            print(f"\n{name}\n{pretty(letter[name])}")
    return OK


async def act_on_each(client: httpx.AsyncClient, arguments: argparse.Namespace) -> int:
    """Those that are named."""
    code = OK
    for id in arguments.ids:
        try:
            if arguments.action == "drop":
                answer = await call(client, "DELETE", f"/v1/dead/{id}")
            else:
                answer = await call(client, "POST", f"/v1/dead/{id}/requeue")
        except Refused as refused:
            print(f"headrace: {refused}", file=sys.stderr)
            code = TASK_FAILED
        else:
            again = f" as {answer['id']}" if "requeued_from" in answer else ""
            print(to_json(answer) if arguments.json else f"{id} {DONE[arguments.action]}{again}")
    return code


async def act_on_all(client: httpx.AsyncClient, arguments: argparse.Namespace) -> int:
    """Those that the filters choose, page by page; what was not reached when it is interrupted is there the next time."""
    total = (await call(client, "GET", "/v1/dead", params=filters(arguments, None, 1)))["total"]
    if arguments.action == "drop" and not arguments.yes:
        confirm(arguments, total)
    handled, refused, after, more = 0, [], None, True
    with show_progress("dead letters", total) as step:
        while more:
            asked = filters(arguments, after, PAGE)
            page = await call(client, "POST", f"/v1/dead/{arguments.action}", params=asked)
            handled, after, more = handled + page["handled"], page["next"], page["has_more"]
            refused += page["refused"]
            step(page["scanned"])
    if arguments.json:
        print(to_json({DONE[arguments.action]: handled, "refused": refused}))
    else:
        for letter in refused:
            print(f"{letter['id']}: {letter['error']['message']}", file=sys.stderr)
        print(f"{handled} {DONE[arguments.action]}, {len(refused)} refused", file=sys.stderr)
    return TASK_FAILED if refused else OK


def check_choice(arguments: argparse.Namespace) -> None:
    """Raises: Failure unless the letters are either named or chosen."""
    chosen = bool(arguments.all or narrowed(arguments))
    if chosen == bool(arguments.ids):
        also = "; not both" if chosen else ""
        raise Failure(f"name the dead letters, or choose them by --pool, --code, --model or --all{also}", code=USAGE)


def confirm(arguments: argparse.Namespace, total: int) -> None:
    """Raises: Failure, unless a person says yes."""
    chosen = ", ".join(f"{name} {value}" for name, value in narrowed(arguments).items()) or "any"
    question = f"Drop every dead letter of {chosen} ({total} are looked through)? They cannot be brought back. [y/N] "
    if not sys.stdin.isatty():
        raise Failure("nobody is there to confirm it: say --yes", code=USAGE)
    if input(question).strip().lower() not in ("y", "yes"):
        raise Failure("nothing was dropped")


def filters(arguments: argparse.Namespace, after: str | None, limit: int) -> dict[str, str]:
    """The parameters of a request over many letters."""
    return narrowed(arguments) | ({"after": after} if after else {}) | {"limit": str(limit)}


def narrowed(arguments: argparse.Namespace) -> dict[str, str]:
    chosen = {"pool": arguments.pool, "code": arguments.code, "model": arguments.model}
    return {name: value for name, value in chosen.items() if value is not None}


def show_table(letters: list[View]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("ID", no_wrap=True, overflow="fold")
    for heading in ("KIND", "CODE", "MODEL", "AGE", "ATTEMPTS"):
        table.add_column(heading, overflow="fold")
    table.add_column("REASON", overflow="fold")
    for letter in letters:
        attempts = str(len(letter.get("history", [])))
        age = duration(letter["created_at_ms"], now_ms())
        told = (letter["kind"], letter["code"], letter.get("model", ""), age, attempts)
        table.add_row(letter["id"], *told, letter["reason"])
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)


def pretty(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()
