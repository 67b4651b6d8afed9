"""How many lines are under way and in memory at once, with a server that is a function."""

import argparse
import asyncio
import json
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from services.cli.bulk import AHEAD, Bulk
from services.cli.failure import Failure
from services.cli.lines import open_source
from services.cli.progress import Meter
from services.cli.requests import Asked, Refused
from services.cli.results import Run, open_results
from shared.lifecycle import State

IN_FLIGHT = 4
Carry = Callable[[Asked], Awaitable[tuple[State, bytes]]]


class Server:
    """In a courier's place."""

    def __init__(self, carry: Carry) -> None:
        self.carry = carry


async def submit(folder: Path, carry: Carry, *, in_order: bool = False) -> None:
    out = folder / "out"
    options = argparse.Namespace(in_flight=IN_FLIGHT, session="", lane=None)
    with open_source(str(folder / "in")) as source:
        run = Run(source.identity, wait=True, in_order=in_order)
        with open_results(out, run, restart=False) as results:
            await Bulk(Server(carry), results, Meter(), options).run(source.lines())  # type: ignore[arg-type]


def finished(folder: Path) -> list[int]:
    """The lines of the results, in their order."""
    return [json.loads(line)["line"] for line in (folder / "out").read_text().splitlines()]


def write(folder: Path, count: int) -> None:
    (folder / "in").write_bytes(b"".join(b'{"input_text": "%d"}\n' % number for number in range(1, count + 1)))


def number_of(asked: Asked) -> int:
    return int(msgspec.json.decode(asked.payload)["input_text"])


async def completed(asked: Asked) -> tuple[State, bytes]:
    return State.COMPLETED, b'{"id":"t","status":"completed","result":{"text":"%s"}}' % (b"x" * 100)


@pytest.mark.parametrize(("in_order", "most"), [(False, 60), (True, IN_FLIGHT * AHEAD)])
async def test_results_come_as_they_end_or_in_order_and_the_latter_bounds_how_far_it_runs_ahead(
    tmp_path: Path, in_order: bool, most: int
) -> None:
    write(tmp_path, 100)
    first = asyncio.Event()
    seen: set[int] = set()

    async def carry(asked: Asked) -> tuple[State, bytes]:
        """The first line ends when `most` have come."""
        seen.add(number_of(asked))
        if len(seen) == most:
            first.set()
        if number_of(asked) == 1:
            await first.wait()
            assert max(seen) == most or not in_order
        return await completed(asked)

    await submit(tmp_path, carry, in_order=in_order)
    lines = finished(tmp_path)
    assert sorted(lines) == list(range(1, 101))
    assert (lines == sorted(lines)) is in_order


async def test_no_more_are_under_way_than_allowed(tmp_path: Path) -> None:
    write(tmp_path, 50)
    under_way, most = 0, 0

    async def carry(asked: Asked) -> tuple[State, bytes]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return await completed(asked)

    await submit(tmp_path, carry)
    assert most == IN_FLIGHT


async def test_lines_that_an_earlier_run_began_have_the_same_keys_and_the_finished_ones_are_not_sent(
    tmp_path: Path,
) -> None:
    write(tmp_path, 20)
    keys: list[dict[int, str]] = [{}, {}]

    async def breaks(asked: Asked) -> tuple[State, bytes]:
        keys[0][number_of(asked)] = asked.key
        if number_of(asked) == 10:
            raise Failure("away")
        return await completed(asked)

    async def works(asked: Asked) -> tuple[State, bytes]:
        keys[1][number_of(asked)] = asked.key
        return await completed(asked)

    with pytest.raises(Failure, match="away"):
        await submit(tmp_path, breaks)
    before = set(finished(tmp_path))
    await submit(tmp_path, works)
    assert sorted(finished(tmp_path)) == list(range(1, 21))
    assert keys[1].keys() == set(range(1, 21)) - before
    assert keys[1][10] == keys[0][10]
    assert len(set((keys[0] | keys[1]).values())) == 20


async def test_a_refusal_is_a_result_with_the_lines_number_and_custom_id(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b'{"custom_id": "\xc3\xa9", "url": "/v1/x", "body": {}}\n{\n')

    async def refuses(asked: Asked) -> tuple[State, bytes]:
        raise Refused("no such route", status=400)

    await submit(tmp_path, refuses)
    first, second = sorted(
        map(json.loads, (tmp_path / "out").read_text().splitlines()), key=lambda line: int(line["line"])
    )
    assert first == {
        "line": 1,
        "custom_id": "é",
        "status": "refused",
        "error": {"message": "no such route", "status": 400},
    }
    assert (second["line"], second["status"]) == (2, "refused")


async def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A piece of the file, which both exceed, and a bit a line is all there is; docs/performance.md has the figures of a million lines."""
    peaks = []
    for count in (20_000, 40_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        write(folder, count)
        tracemalloc.start()
        await submit(folder, completed_quickly)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 60_000


async def completed_quickly(asked: Asked) -> tuple[State, bytes]:
    return State.COMPLETED, b'{"id":"t","status":"completed"}'
