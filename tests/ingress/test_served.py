"""What an answer says of who made it, in every order in which a subscription may tell."""

import pytest

from services.ingress.served import Served
from shared.lifecycle import State
from shared.messages import NULL, Chunks, Finished, Started, Task
from shared.record import Record

TASK = Task(route="/v1/completions", model="m", tenant="default")


def told(served: Served) -> dict[str, str]:
    return {name.decode().removeprefix("x-headrace-"): value.decode() for name, value in served.headers()}


def record(*, attempt: int, worker: str) -> Record:
    return Record(
        state=State.PROCESSING,
        task=TASK,
        epoch=attempt,
        attempt=attempt,
        last=0,
        worker=worker,
        crashes=0,
        failures=0,
        history=[],
        stop="",
        deadline_ms=0,
        created_at_ms=0,
        started_at_ms=0,
        first_token_at_ms=0,
        finished_at_ms=0,
        status=0,
        finished=None,
    )


def chunks(attempt: int) -> Chunks:
    return Chunks(attempt=attempt, first=1, last=1, chunks=[NULL])


def finished(attempt: int, cache: str = "") -> Finished:
    return Finished(attempt=attempt, last=1, state=State.COMPLETED, status=200, cache=cache)


def test_a_task_that_follows_from_its_start_is_told_by_its_events() -> None:
    served = Served("t", TASK)
    assert told(served) == {"task": "t", "model": "m"}
    served.on_event(Started(attempt=1, worker="w1"))
    served.on_event(Started(attempt=2, worker="w2"))
    served.on_event(finished(2))
    assert told(served) == {"task": "t", "model": "m", "worker": "w2", "attempt": "2"}


def test_a_task_that_is_picked_up_is_told_by_its_hash() -> None:
    served = Served("t")
    assert told(served) == {"task": "t"}
    served.on_sync(record(attempt=3, worker="w3"))
    served.on_event(finished(3))
    assert told(served) == {"task": "t", "model": "m", "worker": "w3", "attempt": "3"}


def test_chunks_of_an_attempt_before_the_known_one_name_no_worker() -> None:
    served = Served("t")
    served.on_sync(record(attempt=2, worker="w2"))
    served.on_event(chunks(1))
    assert told(served) == {"task": "t", "model": "m", "attempt": "1"}


def test_the_answer_of_another_task_names_neither_worker_nor_attempt() -> None:
    served = Served("t", TASK)
    served.on_event(finished(0, "hit"))
    assert told(served) == {"task": "t", "model": "m", "cache": "hit"}


def test_the_branch_of_an_alias_is_named() -> None:
    branch = Task(route="/v1/completions", model="m", tenant="default", alias="chat", variant="canary")
    assert told(Served("t", branch))["variant"] == "canary"


@pytest.mark.parametrize(
    ("variant", "header"),
    [
        ("v2 100% (trial)", "v2 100% (trial)"),
        ("a\r\nx-injected: b", "a%0D%0Ax-injected: b"),
        ("\0", "%00"),
        ("größer 50%", "gr%C3%B6%C3%9Fer 50%25"),
    ],
)
def test_what_a_header_cannot_say_is_written_in_percent(variant: str, header: str) -> None:
    """The server refuses an invalid value when the task has run: its client got an empty reply."""
    branch = Task(route="/v1/completions", model="m\n", tenant="default", variant=variant)
    assert told(Served("t", branch)) == {"task": "t", "model": "m%0A", "variant": header}
