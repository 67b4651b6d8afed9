"""`headrace tasks`: the newest tasks as a table, or one of them."""

import argparse
import sys

from rich.console import Console
from rich.table import Table

from services.cli.doors import http_door, read_json
from services.cli.failure import OK
from services.cli.line import of_view, roughly
from services.cli.view import View, has_ended, is_elsewhere, text_of, to_json
from shared.clock import now_ms

STYLES = {"completed": "green", "failed": "red", "expired": "red", "cancelled": "yellow", "processing": "cyan"}
SHOWN = (
    *("id", "status", "stop", "model", "route", "lane", "session", "user", "task_id", "requeued_from"),
    *("attempt", "worker", "failures", "crashes", "finish_reason"),
)


async def run(arguments: argparse.Namespace) -> int:
    async with http_door(arguments.url) as client:
        if arguments.id:
            view = read_json(await client.get(f"/v1/tasks/{arguments.id}"))
            if is_elsewhere(view):
                view["result"] = read_json(await client.get(view["result"]["url"]))
            views = [view]
        else:
            asked = {"limit": str(arguments.limit), "session": arguments.session}
            views = read_json(await client.get("/v1/tasks", params=asked))["data"]
    if arguments.json:
        for view in views:
            print(to_json(view))
    elif arguments.id:
        show_one(views[0])
    elif views:
        show_table(views)
    else:
        print("no tasks", file=sys.stderr)
    return OK


def show_table(views: list[View]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("ID", no_wrap=True, overflow="fold")
    for heading in ("STATUS", "LANE", "MODEL"):
        table.add_column(heading, overflow="fold")
    table.add_column("PLACE", justify="right", no_wrap=True)
    for heading in ("AGE", "FIRST TOKEN", "TOOK"):
        table.add_column(heading, justify="right", no_wrap=True)
    for view in views:
        created = view["created_at_ms"]
        table.add_row(
            view["id"],
            f"[{STYLES.get(view['status'], 'default')}]{view['status']}",
            view["lane"],
            view["model"],
            short_place(view),
            duration(created, now_ms()),
            duration(created, view.get("first_token_at_ms", 0)),
            duration(created, view.get("finished_at_ms", 0)),
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def show_one(view: View) -> None:
    for name in SHOWN:
        if value := view.get(name):
            print(f"{name:<14} {value}")
    if place := of_view(view):
        print(f"{'waits':<14} {place}")
    created = view["created_at_ms"]
    print(f"{'age':<14} {duration(created, now_ms())}")
    for name, at in (
        ("started after", "started_at_ms"),
        ("first token", "first_token_at_ms"),
        ("took", "finished_at_ms"),
    ):
        if view.get(at):
            print(f"{name:<14} {duration(created, view[at])}")
    if (deadline := view.get("deadline_ms")) and not has_ended(view):
        print(f"{'expires in':<14} {duration(now_ms(), deadline)}")
    for tried in attempts(view):
        print(f"{'tried':<14} {tried}")
    if usage := view.get("usage"):
        print(f"{'tokens':<14} {usage.get('prompt_tokens', 0)} in, {usage.get('completion_tokens', 0)} out")
    if text := text_of(view):
        print(f"\n{text}")


def short_place(view: View) -> str:
    place, eta_ms = view.get("position", 0), view.get("eta_ms")
    if not view.get("waits_for"):
        return "-"
    return f"{place or '-'} ~{roughly(eta_ms)}" if eta_ms is not None else f"{place or '-'}"


def attempts(view: View) -> list[str]:
    """The attempts that have ended, of a task or a dead letter, a line each."""
    return [
        f"{one['attempt']} on {one['worker']}: {one['why']} after {duration(one['started_at_ms'], one['ended_at_ms'])}"
        for one in view.get("history", [])
    ]


def duration(start_ms: int, end_ms: int) -> str:
    """Both Unix milliseconds; an end of 0 has not come."""
    if not end_ms:
        return "-"
    seconds = (end_ms - start_ms) / 1000
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
