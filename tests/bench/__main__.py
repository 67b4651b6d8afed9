"""`make bench`: all benchmarks, or those named: `make bench ARGS='bus echo'`."""

import argparse

import uvloop

from tests.bench import affinity, batch, batch_vllm, bus, decisions, durability, echo, mixed, tokens

BENCHMARKS = {
    "affinity": affinity.main,
    "batch": batch.main,
    "batch_vllm": batch_vllm.main,
    "bus": bus.main,
    "decisions": decisions.main,
    "durability": durability.main,
    "echo": echo.main,
    "mixed": mixed.main,
    "tokens": tokens.main,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; none: all of them")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are printed (default 3)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    for name in arguments.names or BENCHMARKS:
        uvloop.run(BENCHMARKS[name](arguments.rounds))


if __name__ == "__main__":
    main()
