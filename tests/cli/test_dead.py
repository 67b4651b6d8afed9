"""`headrace dead` against a running deployment."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from services.cli.failure import FAULT, OK, TASK_FAILED, USAGE
from shared.ids import Place, new_task_id
from shared.keys import shard_keys
from shared.messages import Task, encode
from tests.cli.conftest import Shell
from tests.support.deployment import Deployment

MODEL = "smollm2-135m-instruct"
STREAM = shard_keys("smol", 0).dead
HISTORY = b'{"attempt":1,"worker":"w1","started_at_ms":5000,"ended_at_ms":9000,"why":"lost","last":3}\n'


@pytest.fixture
def dead(running: Deployment) -> Iterator[Any]:
    """A client of the deployment's Redis; no letter is left behind."""
    with Redis.from_url(running.redis, decode_responses=True) as client:
        yield client
        client.delete(STREAM)


def bury(dead: Any, text: str = "again", *, code: str = "task_quarantined", reason: str = "Each worker died.") -> str:
    """The dead letter of a task that would have said `text`."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    fields = {
        "k": "task",
        "t": new_task_id(Place("smol", 0, 0, 0)),
        "code": code,
        "reason": reason,
        "history": HISTORY,
        "spec": encode(Task(route="/v1/chat/completions", model=MODEL, tenant="default")),
        "body": json.dumps(body),
    }
    return f"smol.0:{dead.xadd(STREAM, fields)}"


def test_no_dead_letters_are_told_as_such(client: Shell, dead: Any) -> None:
    done = client.run("dead", "list")
    assert (done.returncode, done.stdout, done.stderr) == (OK, "", "no dead letters\n")


def test_the_list_is_a_table_newest_first_and_its_words_are_shown_as_they_are(client: Shell, dead: Any) -> None:
    first, second = bury(dead), bury(dead, reason="[/oops] it died")
    shown = client.run("dead", "list")
    assert shown.returncode == OK
    heading, newest, oldest = shown.stdout.splitlines()
    assert heading.split() == ["ID", "KIND", "CODE", "MODEL", "AGE", "ATTEMPTS", "REASON"]
    assert newest.startswith(second)
    assert "[/oops] it died" in newest
    assert oldest.startswith(first)


def test_machines_get_the_list_line_by_line_over_all_pages(client: Shell, dead: Any) -> None:
    made = [bury(dead) for _ in range(103)]
    listed = client.run("dead", "list", "--json", "--limit", "102")
    assert [json.loads(line)["id"] for line in listed.stdout.splitlines()] == made[:0:-1]
    assert listed.stderr == "there are more: --limit\n"


def test_one_is_shown_with_what_was_asked_and_what_was_tried(client: Shell, dead: Any) -> None:
    letter = bury(dead, "what now")
    shown = client.run("dead", "show", letter).stdout
    for words in (letter, "task_quarantined", "tried    1 on w1: lost after 4.0 s", '"content": "what now"'):
        assert words in shown
    assert json.loads(client.run("dead", "show", "--json", letter).stdout)["body"]["model"] == MODEL


def test_a_requeued_one_runs_and_its_new_id_is_told(client: Shell, dead: Any) -> None:
    letter = bury(dead, "once more")
    done = client.run("dead", "requeue", letter)
    assert (done.returncode, done.stdout.startswith(f"{letter} requeued as smol.0.0.0.")) == (OK, True)
    assert client.run("watch", done.stdout.split()[-1]).stdout == "once more\n"
    assert dead.xlen(STREAM) == 0


def test_many_are_requeued_by_filter(client: Shell, dead: Any) -> None:
    for number in range(105):
        bury(dead, f"number {number}")
    kept = bury(dead, code="other")
    done = client.run("dead", "requeue", "--code", "task_quarantined")
    assert (done.returncode, done.stderr) == (OK, "105 requeued, 0 refused\n")
    assert [f"smol.0:{entry}" for entry, _ in dead.xrange(STREAM)] == [kept]


def test_what_cannot_be_requeued_is_told_and_stays(client: Shell, dead: Any) -> None:
    bury(dead)
    dead.xadd(STREAM, {"k": "reply", "t": new_task_id(Place("smol", 0, 0, 0)), "reason": "no stream"})
    done = client.run("dead", "requeue", "--all", "--json")
    assert done.returncode == TASK_FAILED
    told = json.loads(done.stdout)
    assert (told["requeued"], [letter["error"]["code"] for letter in told["refused"]]) == (1, ["task_not_found"])
    assert dead.xlen(STREAM) == 1


def test_dropping_by_filter_wants_to_be_confirmed(client: Shell, dead: Any) -> None:
    bury(dead)
    done = client.run("dead", "drop", "--all")
    assert (done.returncode, done.stderr) == (USAGE, "headrace: nobody is there to confirm it: say --yes\n")
    assert dead.xlen(STREAM) == 1
    done = client.run("dead", "drop", "--model", MODEL, "--yes")
    assert (done.returncode, done.stderr, dead.xlen(STREAM)) == (OK, "1 dropped, 0 refused\n", 0)


def test_those_that_are_named_are_dropped_and_the_unknown_ones_told(client: Shell, dead: Any) -> None:
    first, second = bury(dead), bury(dead)
    done = client.run("dead", "drop", first, "smol.0:1-1", second)
    assert (done.returncode, done.stdout) == (TASK_FAILED, f"{first} dropped\n{second} dropped\n")
    assert "There is no dead letter 'smol.0:1-1'" in done.stderr
    assert dead.xlen(STREAM) == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["dead"], "ACTION"),
        (["dead", "show"], "ID"),
        (["dead", "requeue"], "--all"),
        (["dead", "drop"], "--all"),
        (["dead", "drop", "x", "--all"], "not both"),
        (["dead", "requeue", "x", "--code", "y"], "not both"),
    ],
)
def test_what_is_not_chosen_clearly_is_refused(tmp_path: Any, arguments: list[str], word: str) -> None:
    done = Shell(tmp_path).run(*arguments, *(["--url", "http://127.0.0.1:1"] if len(arguments) > 1 else []))
    assert done.returncode == USAGE
    assert word in done.stderr


def test_an_unknown_pool_is_told_with_the_known_ones(client: Shell) -> None:
    done = client.run("dead", "list", "--pool", "nope")
    assert (done.returncode, done.stderr) == (FAULT, "headrace: `pool` is 'nope'; known: smol\n")


@pytest.mark.parametrize("action", ["list", "show", "requeue", "drop"])
def test_each_action_has_help_with_examples(tmp_path: Any, action: str) -> None:
    assert f"examples:\n  headrace dead {action}" in Shell(tmp_path).run("dead", action, "--help").stdout
