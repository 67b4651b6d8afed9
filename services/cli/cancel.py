"""`headrace cancel`: tasks, whether they wait or run."""

import argparse
import sys

from services.cli.doors import http_door, knock
from services.cli.failure import OK, TASK_FAILED
from services.cli.requests import Refused, call
from services.cli.view import View, to_json


async def run(arguments: argparse.Namespace) -> int:
    code = OK
    async with http_door(arguments.url) as client:
        await knock(client)
        for task in arguments.ids:
            try:
                view = await call(client, "POST", f"/v1/tasks/{task}/cancel")
            except Refused as refused:
                print(f"headrace: {refused}", file=sys.stderr)
                code = TASK_FAILED
            else:
                print(to_json(view) if arguments.json else f"{task} {outcome(view)}")
    return code


def outcome(view: View) -> str:
    if not view["known"]:
        return "unknown; cancelled if it comes"
    match view["status"]:
        case "cancelled":
            return "cancelled"
        case "processing":
            return "its worker has been told"
        case ended:
            return f"had ended: {ended}"
