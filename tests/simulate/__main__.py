"""`make simulate`: replay traces against the scheduler's own scripts, in simulated time, and draw what came of it."""

import argparse
import random
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.simulate import report, trace
from tests.simulate.promises import Check
from tests.simulate.recording import Recording
from tests.simulate.run import simulate
from tests.simulate.scenarios import SCENARIOS, Scenario, given
from tests.simulate.world import Setup


def main() -> int:
    names = "\n".join(f"  {scenario.name:11} {scenario.about}" for scenario in SCENARIOS.values())
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulate",
        description=__doc__,
        epilog=f"scenarios:\n{names}\n\nA trace of a deployment is written by: python -m tests.simulate.record --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help="none: all of them")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="replay this trace (.csv or .jsonl) instead")
    parser.add_argument("--weights", default="", metavar="NAME=N,...", help="of tenants of the trace (default: all 1)")
    parser.add_argument("--workers", type=_count, help="of a trace (default 4)")
    parser.add_argument("--slots", type=_count, help="of each worker of a trace (default 16)")
    parser.add_argument(
        "--schedulers", type=_count, default=0, metavar="N", help="replicas (default: with 1, then with 3)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of arrivals, sizes, faults and delays (default 1)")
    parser.add_argument("--minutes", type=float, default=0, help="for which tasks arrive (default: the scenario's own)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="for pictures, traces and recordings (default: none are kept)"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(SCENARIOS):
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    if arguments.trace is None and (arguments.weights or arguments.workers or arguments.slots):
        parser.error("--weights, --workers and --slots go with --trace: a scenario has its own")
    if arguments.trace is not None and (arguments.names or arguments.minutes):
        parser.error("--trace replays one trace as it is: leave scenarios and --minutes out")
    try:
        chosen = _chosen(arguments)
    except trace.TraceError as error:
        parser.error(str(error))
    return _run(chosen, arguments)


def _chosen(arguments: argparse.Namespace) -> list[Scenario]:
    """Raises: TraceError."""
    if arguments.trace is None:
        return [SCENARIOS[name] for name in arguments.names or SCENARIOS]
    weights = _weights(arguments.weights)
    return [given(arguments.trace.stem, trace.read(arguments.trace), weights, arguments.workers, arguments.slots)]


def _run(chosen: list[Scenario], arguments: argparse.Namespace) -> int:
    broken = 0
    for scenario in chosen:
        for schedulers in [arguments.schedulers] if arguments.schedulers else [1, 3]:
            setup = scenario.make(
                random.Random(f"trace {arguments.seed}"), (arguments.minutes or scenario.minutes) * 60
            )
            setup = msgspec.structs.replace(setup, seed=arguments.seed, schedulers=schedulers)
            print(f"{scenario.name}: {scenario.about}")
            checks = _run_one(scenario, setup, arguments.out)
            broken += sum(not check.ok for check in checks)
            print(flush=True)
    print(f"{broken} promises broken" if broken else "all promises kept")
    return 1 if broken else 0


def _run_one(scenario: Scenario, setup: Setup, out: Path | None) -> list[Check]:
    columns = (
        TextColumn("  {task.fields[now]:6.0f} s"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(setup.rows), now=0.0)
        recording = simulate(setup, lambda now_s, ended, _: progress.update(bar, completed=ended, now=now_s))
    checks = scenario.check(recording)
    print(report.text(recording, scenario.tenants, checks))
    if out is not None:
        _keep(scenario, setup, recording, out)
    return checks


def _keep(scenario: Scenario, setup: Setup, recording: Recording, out: Path) -> None:
    from tests.simulate import draw  # takes a second to import, and is not needed without --out

    out.mkdir(parents=True, exist_ok=True)
    name = f"{scenario.name}-{setup.schedulers}"
    (out / f"{name}.json").write_bytes(msgspec.json.encode(recording))
    trace.write(out / f"{scenario.name}.csv", setup.rows)
    draw.draw(recording, scenario, out / f"{name}.png")
    print(f"  {out / name}.png, .json; {out / scenario.name}.csv")


def _weights(said: str) -> dict[str, float]:
    """Raises: TraceError."""
    weights = {}
    for one in filter(None, said.split(",")):
        name, _, number = one.partition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            weights[name] = 0.0
        if not weights[name] > 0:
            raise trace.TraceError(f"--weights has {one!r}; give each tenant as name=weight, the weight above 0")
    return weights


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
