"""docs/conformance.md tells of every difference from vLLM's own server that tests/conformance allows, and of no other."""

from pathlib import Path

from tests.conformance.differences import DIFFERENCES, OF_ONE_PROCESS, Difference, Refused
from tests.conformance.other_calls import CALLS

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "conformance.md").read_text()


def status(answer: Refused | int) -> int:
    return answer if isinstance(answer, int) else answer.status


def rows() -> list[str]:
    """Calls that differ alike share one."""
    alike: dict[tuple[str, int, int], list[str]] = {}
    for name, difference in DIFFERENCES.items():
        alike.setdefault(_kind(difference), []).append(f"`{name}`")
    return [f"| {', '.join(names)} | {ours} | {theirs} | {why} |" for (why, ours, theirs), names in alike.items()]


def _kind(difference: Difference) -> tuple[str, int, int]:
    return difference.reason, status(difference.headrace), status(difference.vllm)


def test_the_document_lists_every_difference() -> None:
    told = [line for line in DOCUMENT.splitlines() if line.startswith("| `")]
    assert told == rows()


def test_every_difference_is_one_of_a_call() -> None:
    names = [call.name for call in CALLS]
    assert len(names) == len(set(names)) >= 80
    assert set(DIFFERENCES) <= set(names)


def test_the_document_names_the_paths_that_ask_for_no_inference() -> None:
    assert [path for path in OF_ONE_PROCESS if f"`{path}`" not in DOCUMENT] == []
