"""The commands that are clients, against a running deployment."""

import json
import select
from pathlib import Path

import pytest

from services.cli.failure import FAULT, OK, TASK_FAILED, USAGE
from tests.cli.conftest import Shell
from tests.support.deployment import Deployment
from tests.support.waiting import wait_blocking

MODEL = "smollm2-135m-instruct"


def test_ask_streams_the_answer(client: Shell) -> None:
    done = client.run("ask", "one two three")
    assert (done.returncode, done.stdout, done.stderr) == (OK, "one two three\n", "")


def test_ask_tells_machines_the_whole_answer(client: Shell) -> None:
    told = json.loads(client.run("ask", "--json", "--max-tokens", "2", "one two three").stdout)
    assert (told["text"], told["finish_reason"], told["usage"]["completion_tokens"]) == ("one two", "length", 2)


def test_ask_passes_on_why_the_server_refused(client: Shell) -> None:
    done = client.run("ask", "--model", "gpt", "hello")
    assert done.returncode == TASK_FAILED
    assert f"The model `gpt` does not exist. Served here: {MODEL}." in done.stderr


def test_submit_waits_for_the_answer_of_a_text(client: Shell) -> None:
    done = client.run("submit", "--text", "one two")
    assert (done.returncode, done.stdout) == (OK, "one two\n")


def test_submit_takes_a_body_and_prints_its_task(client: Shell) -> None:
    body = {"route": "/v1/completions", "lane": "batch", "body": {"model": MODEL, "prompt": "one two"}}
    view = json.loads(client.run("submit", "--json", "--body", json.dumps(body)).stdout)
    assert (view["status"], view["lane"], view["result"]["choices"][0]["text"]) == ("completed", "batch", "one two")


def test_watch_prints_a_task_from_its_start(client: Shell) -> None:
    task = client.run("submit", "--no-wait", "--text", "one two three").stdout.strip()
    done = client.run("watch", task)
    assert (done.returncode, done.stdout) == (OK, "one two three\n")


def test_watch_tells_machines_every_message(client: Shell) -> None:
    tasks = [client.run("submit", "--no-wait", "--text", text).stdout.strip() for text in ("a b", "c d")]
    messages = [json.loads(line) for line in client.run("watch", "--json", *tasks).stdout.splitlines()]
    for task, text in zip(tasks, ("a b", "c d"), strict=True):
        own = [message for message in messages if message["task"] == task]
        assert "".join(message["d"] for message in own if message["t"] == "d") == text
        assert own[-1]["t"] == "done"


def test_watch_of_a_session_sees_tasks_that_come_later(client: Shell) -> None:
    with client.start("watch", "--json", "--session", "ann") as watching:
        assert watching.stdout is not None
        out = watching.stdout

        def heard() -> bool:
            """A task that ended before the subscription stood is not told, so there is another each time."""
            assert client.run("submit", "--session", "ann", "--text", "hello ann").returncode == OK
            return bool(select.select([out], [], [], 0)[0])

        wait_blocking(heard, "the session's events arrive")
        kinds = [""]
        while kinds[-1] != "done":
            kinds.append(json.loads(out.readline())["t"])
    assert "d" in kinds


def test_tasks_lists_the_newest_first_and_shows_one(client: Shell) -> None:
    ids = [
        client.run("submit", "--no-wait", "--session", "eve", "--text", text).stdout.strip()
        for text in ("first", "second")
    ]
    listed = client.run("tasks", "--json", "--session", "eve").stdout.splitlines()
    assert [json.loads(line)["id"] for line in listed] == ids[::-1]
    table = client.run("tasks", "--session", "eve").stdout
    assert ids[0] in table
    assert client.run("submit", "--body", json.dumps({"input_text": "x", "session": "eve"})).returncode == OK
    shown = client.run("tasks", ids[0]).stdout
    assert "completed" in shown
    assert shown.endswith("\nfirst\n")


@pytest.mark.parametrize("command", [["tasks", "nope"], ["watch", "nope"]])
def test_an_unknown_task_is_told_in_one_line(client: Shell, command: list[str]) -> None:
    done = client.run(*command)
    assert (done.returncode, done.stderr) == (FAULT, "headrace: 'nope' is not the id of a task.\n")


GONE = [
    ["ask", "x"],
    ["submit", "--text", "x"],
    ["tasks"],
    ["watch", "--session", "x"],
    ["cancel", "x"],
    ["dead", "list"],
    ["dead", "drop", "--all", "--yes"],
]


@pytest.mark.parametrize("command", GONE)
def test_a_server_that_is_not_there_is_told_with_the_remedy(tmp_path: Path, command: list[str]) -> None:
    done = Shell(tmp_path).run(*command, "--url", "http://127.0.0.1:1")
    assert done.returncode == FAULT
    assert done.stderr == (
        "headrace: nothing answers at http://127.0.0.1:1. Start it with `headrace up`, or name the address with --url.\n"
    )


def test_watch_tells_that_the_notifier_is_not_there(client: Shell) -> None:
    task = client.run("submit", "--no-wait", "--text", "x").stdout.strip()
    done = client.run("watch", task, "--ws-url", "ws://127.0.0.1:1/v1/ws")
    assert done.returncode == FAULT
    assert "--ws-url" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["foo"],
        ["ask"],
        ["submit"],
        ["submit", "x", "--in-flight", "0"],
        ["submit", "x", "--text", "y"],
        ["submit", "--text", "x", "--in-order"],
        ["submit", "x", "--restart"],
        ["tasks", "--limit", "x"],
        ["watch"],
    ],
)
def test_wrong_arguments_end_with_their_own_code(tmp_path: Path, arguments: list[str]) -> None:
    done = Shell(tmp_path).run(*arguments)
    assert done.returncode == USAGE
    assert "headrace" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["up", "ask", "submit", "watch", "tasks", "cancel", "dead"])
def test_help_shows_examples_and_exit_codes(tmp_path: Path, command: str) -> None:
    shown = Shell(tmp_path).run(command, "--help").stdout
    assert f"examples:\n  headrace {command}" in shown
    assert "3    a task failed or was refused" in shown


def test_urls_come_from_the_environment_or_the_option(running: Deployment, tmp_path: Path) -> None:
    assert Shell(tmp_path).run("tasks", "--url", running.http).returncode == OK
    assert Shell(tmp_path, HEADRACE_URL=running.http).run("tasks").returncode == OK
