"""A file of tasks through real services: each line once, whatever ends the command in between."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.cli.failure import FAULT, INTERRUPTED, OK, TASK_FAILED, USAGE
from tests.cli.conftest import Shell
from tests.support.deployment import Deployment, deployment
from tests.support.waiting import wait_blocking

MODEL = "smollm2-135m-instruct"
SLOW = """
[pools.smol]
model = "smollm2-135m-instruct"
engine = "echo"
slots = 8
[pools.smol.echo]
first_token_ms = 250
"""
MANY = 90
"""More than a moment's work for the slow engine, and fewer than a page of the list."""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("slow"), config=SLOW) as running:
        yield running


@pytest.fixture
def patient(slow: Deployment, tmp_path: Path) -> Shell:
    return Shell(tmp_path, HEADRACE_URL=slow.http)


def write(folder: Path, *lines: object) -> str:
    """Text as it is, anything else as JSON."""
    file = folder / "tasks.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(file)


def results(output: Path) -> dict[int, dict[str, Any]]:
    """By line; none comes twice."""
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(found) == len({result["line"] for result in found})
    return {result["line"]: result for result in found}


def answer(result: dict[str, Any]) -> str:
    return str(result["result"]["choices"][0]["message"]["content"])


def many(folder: Path) -> str:
    return write(folder, *({"input_text": f"number {number}"} for number in range(1, MANY + 1)))


def is_whole(output: Path) -> None:
    found = results(output)
    assert sorted(found) == list(range(1, MANY + 1))
    assert {number: answer(result) for number, result in found.items()} == {n: f"number {n}" for n in found}


def made(running: Deployment, session: str) -> int:
    """Tasks of the session, whoever submitted them."""
    return len(
        httpx.get(f"{running.http}/v1/tasks", params={"session": session, "limit": 100}, timeout=30).json()["data"]
    )


def test_a_file_of_all_shapes_is_submitted_and_faulty_lines_stop_nothing(client: Shell, tmp_path: Path) -> None:
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "chat"}]}
    file = write(
        tmp_path,
        {"input_text": "short"},
        chat,
        {"model": MODEL, "prompt": "plain"},
        {"body": chat, "lane": "normal"},
        "",
        "{broken",
        {"input_text": "x", "model": "gpt"},
        {"custom_id": "mine", "method": "POST", "url": "/v1/chat/completions", "body": chat},
        *({"input_text": f"more {number}"} for number in range(50)),
    )
    output = tmp_path / "out.jsonl"
    done = client.run("submit", file, "-o", str(output), "--in-flight", "8")
    assert (done.returncode, done.stdout, done.stderr) == (TASK_FAILED, "", "55 done, 2 failed\n")
    found = results(output)
    assert sorted(found) == [number for number in range(1, 59) if number != 5]
    assert [found[n]["status"] for n in (1, 2, 3, 4, 6, 7, 8)] == ["completed"] * 4 + ["refused"] * 2 + ["completed"]
    assert (found[1]["lane"], found[4]["lane"], answer(found[2])) == ("batch", "normal", "chat")
    assert "not a JSON object" in found[6]["error"]["message"]
    assert (found[7]["error"]["status"], found[7]["error"]["code"]) == (404, "model_not_found")
    assert (found[8]["custom_id"], answer(found[8])) == ("mine", "chat")
    again = client.run("submit", file, "-o", str(output))
    assert (again.returncode, again.stderr) == (TASK_FAILED, "55 done, 2 failed (57 of them by an earlier run)\n")


def test_a_killed_command_goes_on_and_runs_no_task_twice(patient: Shell, slow: Deployment, tmp_path: Path) -> None:
    file, output = many(tmp_path), tmp_path / "out.jsonl"
    command = ("submit", file, "-o", str(output), "--session", "killed", "--in-flight", "16")
    for so_many in (10, 40):
        with patient.start(*command) as process:
            wait_blocking(lambda: output.exists() and output.read_bytes().count(b"\n") >= so_many, "it is under way")  # noqa: B023
            process.kill()
            process.wait()
        with output.open("ab") as half:
            half.write(b'{"line": 90, "stat')
    done = patient.run(*command)
    assert (done.returncode, done.stderr.partition(" (")[0]) == (OK, f"{MANY} done, 0 failed")
    is_whole(output)
    assert made(slow, "killed") == MANY


def test_ctrl_c_says_how_to_go_on_and_the_tasks_under_way_are_found_again(
    patient: Shell, slow: Deployment, tmp_path: Path
) -> None:
    file, output = many(tmp_path), tmp_path / "out.jsonl"
    command = ("submit", file, "-o", str(output), "--session", "interrupted", "--in-order")
    with patient.start(*command) as process:
        wait_blocking(lambda: output.exists() and output.read_bytes().count(b"\n") >= 10, "it is under way")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    assert patient.run(*command).returncode == OK
    assert [json.loads(line)["line"] for line in output.read_text().splitlines()] == list(range(1, MANY + 1))
    is_whole(output)
    assert made(slow, "interrupted") == MANY


def test_a_restart_of_the_http_door_is_outlasted(patient: Shell, slow: Deployment, tmp_path: Path) -> None:
    file, output = many(tmp_path), tmp_path / "out.jsonl"
    with patient.start("submit", file, "-o", str(output), "--session", "restart", "--in-flight", "16") as process:
        wait_blocking(lambda: output.exists() and output.read_bytes().count(b"\n") >= 10, "it is under way")
        os.kill(slow.processes()["ingress"][0], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (OK, f"{MANY} done, 0 failed")
    is_whole(output)
    assert made(slow, "restart") == MANY


def test_other_tasks_than_those_that_the_output_was_begun_with_are_refused(client: Shell, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert client.run("submit", write(tmp_path, {"input_text": "a"}), "-o", str(output)).returncode == OK
    changed = write(tmp_path, {"input_text": "b"})
    refused = client.run("submit", changed, "-o", str(output))
    assert (refused.returncode, "the tasks have changed" in refused.stderr) == (USAGE, True)
    assert answer(results(output)[1]) == "a"
    assert client.run("submit", changed, "-o", str(output), "--restart").returncode == OK
    assert answer(results(output)[1]) == "b"


def test_a_full_disk_ends_the_command_and_the_next_one_goes_on(client: Shell, tmp_path: Path) -> None:
    file, output = many(tmp_path), tmp_path / "out.jsonl"
    full = client.run("submit", file, "-o", str(output), "--session", "full", file_bytes=8000)
    assert full.returncode == FAULT
    assert "out.jsonl cannot be written: File too large" in full.stderr
    assert "the same command goes on from there" in full.stderr
    assert 0 < len(results(output)) < MANY
    assert client.run("submit", file, "-o", str(output), "--session", "full").returncode == OK
    is_whole(output)


def test_a_pipe_is_submitted_to_standard_output(client: Shell) -> None:
    reader, writer = os.pipe()
    os.write(writer, b'{"input_text": "one"}\n{"input_text": "two"}')
    os.close(writer)
    done = client.run("submit", "-", stdin=reader)
    os.close(reader)
    assert (done.returncode, done.stderr) == (OK, "2 done, 0 failed\n")
    assert {(line["line"], answer(line)) for line in map(json.loads, done.stdout.splitlines())} == {
        (1, "one"),
        (2, "two"),
    }


def test_ctrl_c_ends_a_command_whose_pipe_is_quiet(client: Shell, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b'{"input_text": "one"}\n')
    with client.start("submit", "-", "-o", str(tmp_path / "out"), stdin=reader) as process:
        wait_blocking(
            lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text(), "the line is finished", 30
        )
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    os.close(reader)
    os.close(writer)
    assert (process.returncode, "1 finished" in err) == (INTERRUPTED, True)


def test_ids_are_enough_for_who_does_not_wait(client: Shell, tmp_path: Path) -> None:
    done = client.run("submit", "--file", write(tmp_path, {"input_text": "a"}), "--no-wait")
    line = json.loads(done.stdout)
    assert (done.returncode, line["line"], line["status"], "result" in line) == (OK, 1, "pending", False)


def test_a_reader_that_leaves_ends_the_command(client: Shell, tmp_path: Path) -> None:
    with client.start("submit", many(tmp_path)) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(30) == FAULT
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


WRONG = [
    (["no such file"], FAULT, "--text"),
    (["tasks.jsonl", "-o", "tasks.jsonl"], USAGE, "holds the tasks"),
    (["tasks.jsonl", "--restart"], USAGE, "name it with -o"),
    (["--text", "x", "--in-order"], USAGE, "--in-order is for a file"),
    (["--text", "x", "--in-flight", "8"], USAGE, "--in-flight is for a file"),
    (["tasks.jsonl", "--in-flight", "1001"], USAGE, "'1001' is not a number from 1 to 1000"),
]


@pytest.mark.parametrize(("arguments", "code", "why"), WRONG)
def test_what_cannot_be_meant_is_told(client: Shell, tmp_path: Path, arguments: list[str], code: int, why: str) -> None:
    write(tmp_path, {"input_text": "a"})
    named = [str(tmp_path / word) if word == "tasks.jsonl" else word for word in arguments]
    done: subprocess.CompletedProcess[str] = client.run("submit", *named)
    assert (done.returncode, why in done.stderr) == (code, True), done.stderr
    assert (tmp_path / "tasks.jsonl").read_text() == '{"input_text": "a"}\n'
