"""`make chaos`: break everything for a while, and see whether every promise holds."""

import argparse
import asyncio
import contextlib
import random
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live

from tests.chaos.faults import ENGINE_WEIGHTS, WEIGHTS
from tests.chaos.run import Options, chaos

ALL_WEIGHTS = WEIGHTS | ENGINE_WEIGHTS
LIVE_S, PLAIN_S = 0.5, 15.0
"""Where no terminal is, a line of progress so often."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2, help="of load and faults (default 2)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of faults and load (default: drawn)")
    parser.add_argument("--rate", type=float, default=20, help="tasks a second (default 20)")
    parser.add_argument("--every", type=float, default=3, help="mean seconds between faults (default 3)")
    parser.add_argument("--replicas", default="ingress=2,scheduler=2,inference=3,notifier=2", help="as of headrace up")
    parser.add_argument("--engine", choices=("echo", "vllm"), default="echo")
    parser.add_argument("--lease", type=float, default=10, help="seconds that a worker may be silent (default 10)")
    parser.add_argument("--kept", type=int, default=60, help="seconds that results are kept (default 60)")
    parser.add_argument("--folder", type=Path, help="for history, logs and report (default: a new one)")
    parser.add_argument("--only", default="", metavar="KIND,KIND", help=f"faults to draw: {', '.join(ALL_WEIGHTS)}")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="headrace-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty: what is in it would be taken for a part of this run")
    only = [kind.strip() for kind in given.only.split(",") if kind.strip()]
    if unknown := set(only) - set(ALL_WEIGHTS):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}")
    options = Options(
        seed=given.seed,
        folder=folder,
        minutes=given.minutes,
        rate=given.rate,
        every_s=given.every,
        replicas=given.replicas,
        engine=given.engine,
        kinds={kind: ALL_WEIGHTS[kind] for kind in only}
        or WEIGHTS | (ENGINE_WEIGHTS if given.engine == "vllm" else {}),
        lease_s=given.lease,
        kept_s=given.kept,
    )
    print(f"seed {options.seed}, in {folder}", file=sys.stderr)
    made = asyncio.run(chaos(options, shown))
    print(made.text())
    if made.breaches:
        print(f"history, logs and tales: {folder}", file=sys.stderr)
        return 1
    if given.folder is None:
        shutil.rmtree(folder)
    return 0


@contextlib.asynccontextmanager
async def shown(line: Callable[[], str]) -> AsyncIterator[None]:
    """A live line on a terminal, else one now and then. Without threads, for processes are forked meanwhile."""
    console = Console(stderr=True, highlight=False)
    with Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext() as live:

        async def show() -> None:
            while True:
                await asyncio.sleep(LIVE_S if live else PLAIN_S)
                if live:
                    live.update(line(), refresh=True)
                else:
                    console.print(line())

        showing = asyncio.create_task(show())
        try:
            yield
        finally:
            showing.cancel()


if __name__ == "__main__":
    sys.exit(main())
