"""Traces: what is written is read again, and what is wrong is named."""

import random
from pathlib import Path

import pytest

from shared.lifecycle import Lane
from tests.simulate.generate import bursts, changing, lognormal, pareto, rows, steady, zipf
from tests.simulate.trace import Row, TraceError, ordered, read, write


def made(seed: int) -> list[Row]:
    dice = random.Random(seed)
    chats = rows(dice, steady(dice, 5, 0, 60), zipf(100), Lane.INTERACTIVE, lognormal(100, 50), expires_in_s=20)
    jobs = rows(dice, steady(dice, 5, 0, 60), "jobs", Lane.BATCH, pareto(30, 20, most=1000))
    return ordered([*chats, *jobs])


@pytest.mark.parametrize("name", ["trace.csv", "trace.jsonl"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, made(1))
    assert read(tmp_path / name) == made(1)


def test_the_same_seed_gives_the_same_trace_and_another_one_does_not() -> None:
    assert made(7) == made(7) != made(8)


def test_columns_that_are_left_out_have_their_defaults(tmp_path: Path) -> None:
    (tmp_path / "short.csv").write_text("arrival_s,tokens_in,tokens_out\n5.25,10,20\n")
    assert read(tmp_path / "short.csv") == [Row(arrival_s=0.0, tokens_in=10, tokens_out=20)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arrival_s,tokens_in,tokens_out\n0,10,20\n1,0,20\n", r"line 3: .*>= 1.*tokens_in"),
        ("arrival_s,tokens_in,tokens_out\n-1,10,20\n", r"line 2: .*arrival_s"),
        ("arrival_s,tokens_in,tokens_out,lane\n0,10,20,fast\n", r"line 2: .*'fast'.*lane"),
        ("arrival_s,tokens_in,tokens_out,tenant\n0,10,20,a b\n", r"line 2: tenant is 'a b'; it is"),
        ("arrival_s,tokens_in,tokens_out,color\n0,10,20,red\n", r"line 2: .*color.*The fields are arrival_s"),
        ("arrival_s,tokens_in\n0,10\n", r"line 2: .*tokens_out"),
        ("arrival_s,tokens_in,tokens_out\n", "has no task"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_field(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "wrong.csv").write_text(text)
    with pytest.raises(TraceError, match=says):
        read(tmp_path / "wrong.csv")


def test_a_file_that_is_no_trace_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"ends in \.csv or \.jsonl"):
        read(tmp_path / "trace.txt")


def test_bursts_come_when_they_should() -> None:
    dice = random.Random(1)
    arrivals = list(changing(dice, bursts(1, 20, 60, 10), 20, 0, 600))
    inside = sum(at_s % 60 < 10 for at_s in arrivals)
    assert 1700 < inside < 2300
    assert 400 < len(arrivals) - inside < 600
