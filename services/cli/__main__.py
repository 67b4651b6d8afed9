"""The command line's entry: reads the arguments, runs one command, turns its end into an exit code."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from services.cli.arguments import make_parser
from services.cli.failure import FAULT, INTERRUPTED, Failure
from shared.errors import HeadraceError


def main(argv: Sequence[str] | None = None) -> None:
    try:
        code = run(make_parser().parse_args(argv))
    except HeadraceError as error:
        print(f"headrace: {error}", file=sys.stderr)
        code = error.code if isinstance(error, Failure) else FAULT
    except ModuleNotFoundError as error:
        print(f"headrace: the package {error.name} is missing: pip install 'headrace[cli,notifier]'", file=sys.stderr)
        code = FAULT
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAULT
    sys.exit(code)


def run(arguments: argparse.Namespace) -> int:
    """Each command imports only what it needs: `up` must be quick."""
    match arguments.command:
        case "up":
            from services.cli.up.command import run as up

            return up(arguments)
        case "ask":
            from services.cli.ask import run as ask

            return asyncio.run(ask(arguments))
        case "submit":
            import uvloop  # a file of short tasks is bounded by this process

            from services.cli.submit import run as submit

            return uvloop.run(submit(arguments))
        case "watch":
            from services.cli.watch import run as watch

            return asyncio.run(watch(arguments))
        case "cancel":
            from services.cli.cancel import run as cancel

            return asyncio.run(cancel(arguments))
        case "dead":
            from services.cli.dead import run as dead

            return asyncio.run(dead(arguments))
        case "batches":
            from services.cli.batches import run as batches

            return asyncio.run(batches(arguments))
        case "files":
            from services.cli.files import run as files

            return asyncio.run(files(arguments))
        case "keys":
            from services.cli.keys import run as keys

            return keys(arguments)
        case "config":
            from services.cli.configuration import run as configuration

            return configuration(arguments)
        case _:
            from services.cli.tasks import run as tasks

            return asyncio.run(tasks(arguments))


if __name__ == "__main__":
    main()
