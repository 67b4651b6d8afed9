"""How an output tells what is finished, and what is refused before anything is lost."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.cli.failure import Failure
from services.cli.lines import Identity
from services.cli.results import Results, Run, open_results

INPUT = Identity("d1", lines=9, last=9)


@contextmanager
def opened(
    path: Path, *, of: Identity | None = INPUT, wait: bool = True, in_order: bool = False, restart: bool = False
) -> Iterator[Results]:
    with open_results(path, Run(of, wait=wait, in_order=in_order), restart=restart) as results:
        yield results


def text(number: int, status: str = "completed") -> bytes:
    return json.dumps({"line": number, "status": status}).encode() + b"\n"


def lines(path: Path) -> list[int]:
    return [json.loads(line)["line"] for line in path.read_text().splitlines()]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """With the results of lines 2 and 3, the latter a failure."""
    path = tmp_path / "out"
    with opened(path) as results:
        assert results.write(2, text(2), failed=False) == [False]
        assert results.write(3, text(3, "failed"), failed=True) == [True]
    return path


def test_what_is_finished_is_read_back_and_the_run_keeps_its_name(out: Path) -> None:
    names = set()
    for _ in range(2):
        with opened(out) as results:
            names.add(results.run.name)
            assert [results.has(number) for number in range(1, 10)] == [False, True, True] + [False] * 6
            assert (results.done, results.failed, results.earlier) == (1, 1, 2)
    assert len(names) == 1
    assert names != {""}


@pytest.mark.parametrize("half", [b"{", b'{"line": 4, "status": "completed"}', text(2)[:-1], b"\x00\x00"])
def test_a_last_line_without_its_end_is_cut_off(out: Path, half: bytes) -> None:
    whole = out.read_bytes()
    out.write_bytes(whole + half)
    with opened(out) as results:
        assert not results.has(4)
        results.write(4, text(4), failed=False)
    assert out.read_bytes() == whole + text(4)


@pytest.mark.parametrize("wrong", [b"\n", b"[]\n", b'{"line": 1}\n', text(10), text(0), text(2)])
def test_an_output_that_somebody_has_changed_is_refused_and_left_as_it_is(out: Path, wrong: bytes) -> None:
    before = out.read_bytes() + wrong
    out.write_bytes(before)
    with pytest.raises(Failure, match=r"its line 3 is .*--restart"), opened(out):
        pass
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("of", "wait", "in_order", "why"),
    [
        (Identity("d2", lines=9, last=9), True, False, "the tasks have changed"),
        (INPUT, False, False, "was begun without --no-wait"),
        (INPUT, True, True, "was begun without --in-order"),
        (None, True, False, "a pipe cannot be gone on with"),
    ],
)
def test_another_run_is_refused_until_it_is_told_to_begin_anew(
    out: Path, of: Identity | None, wait: bool, in_order: bool, why: str
) -> None:
    with pytest.raises(Failure, match=rf"{why}.*--restart"), opened(out, of=of, wait=wait, in_order=in_order):
        pass
    assert lines(out) == [2, 3]
    with opened(out, of=of, wait=wait, in_order=in_order, restart=True) as results:
        assert results.earlier == 0
    assert out.read_bytes() == b""


@pytest.mark.parametrize("state", [None, b"", b"{}", b"\x00"])
def test_an_output_of_unknown_origin_is_refused(out: Path, state: bytes | None) -> None:
    file = out.with_name("out.state")
    if state is None:
        file.unlink()
    else:
        file.write_bytes(state)
    with pytest.raises(Failure, match=r"out has content, but out\.state.*--restart"), opened(out):
        pass
    assert lines(out) == [2, 3]


def test_a_run_that_ended_before_its_first_result_goes_on_under_its_name(tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        with opened(tmp_path / "out") as results:
            names.append(results.run.name)
    assert names[0] == names[1]
    with opened(tmp_path / "out", in_order=True) as results:
        assert results.run.name != names[0]


def test_an_output_that_was_removed_begins_anew(out: Path) -> None:
    with opened(out) as results:
        before = results.run.name
    out.unlink()
    with opened(out) as results:
        assert (results.earlier, results.run.name != before) == (0, True)


def test_two_at_once_are_refused(out: Path) -> None:
    with opened(out), pytest.raises(Failure, match="another command writes"), opened(out):
        pass


def test_in_order_a_result_waits_for_those_before_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with opened(path, in_order=True) as results:
        for number in (1, 4, 5):
            results.expect(number)
        assert results.write(5, text(5), failed=False) == []
        assert results.write(4, text(4, "failed"), failed=True) == []
        assert lines(path) == []
        assert results.write(1, text(1), failed=False) == [False, True, False]
        assert (results.done, results.failed) == (2, 1)
    assert lines(path) == [1, 4, 5]


def test_a_full_disk_is_told_and_leaves_whole_lines(out: Path) -> None:
    """The device /dev/full stands for one; what a file has of a line that did not fit is cut off in test_submit.py."""
    with opened(Path("/dev/full")) as results, pytest.raises(Failure, match="No space left on device"):
        results.write(1, text(1), failed=False)
    assert not Path("/dev/full.state").exists()


def test_an_output_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot be written: No such file"), opened(tmp_path / "no" / "out"):
        pass
