"""`headrace up` as a whole, with the echo engine and a real Redis."""

import asyncio
import json
import os
import pty
import signal
import socket
import subprocess
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from services.cli.failure import FAULT, OK, USAGE
from services.cli.up import command
from services.cli.up.command import Up
from services.cli.up.screen import Screen
from tests.cli.conftest import Shell, redis_with
from tests.support.deployment import command_line
from tests.support.processes import alive
from tests.support.waiting import wait_blocking

SERVICES = ("ingress", "scheduler", "inference", "notifier")
UP = ("up", "--engine", "echo", "--port", "0", "--ws-port", "0")


def ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr else ""
    urls: dict[str, Any] = json.loads(line)
    return urls


def service(shell: Shell, name: str) -> int:
    """The process id of the only replica."""
    (pid,) = [pid for pid in shell.processes() if f"services.{name}" in command_line(pid)]
    return pid


def answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_once_prints_the_answer_and_leaves_no_process(shell: Shell) -> None:
    done = shell.run(*UP, "--once", "a stranger asks")
    assert (done.returncode, done.stdout) == (OK, "a stranger asks\n"), done.stderr
    assert shell.processes() == []


@pytest.mark.parametrize(
    ("pool", "asked"),
    [
        ('engine = "echo"\n[pools.small.echo]\nmax_model_len = 8', True),
        ('engine = "python"\n[pools.small.python]\ncallable = "tests.support.echoing:echoing"', False),
    ],
)
def test_a_model_that_answers_no_question_is_no_fault(shell: Shell, pool: str, asked: bool) -> None:
    file = shell.folder / "headrace.toml"
    file.write_text(f'[pools.small]\nmodel = "small"\n{pool}\n')
    with shell.start("up", "--port", "0", "--ws-port", "0", "--config", str(file)) as process:
        assert process.stderr is not None
        said = ""
        while "running" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert (process.returncode, "no answer: " in said, "sky" in said) == (OK, asked, asked)


async def test_a_model_whose_engine_is_away_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def wait(self: Up, url: str, question: str) -> int:
        return await asyncio.Future()

    monkeypatch.setattr(Up, "_ask", wait)
    monkeypatch.setattr(command, "GREET_S", 0.01)
    up = Up.__new__(Up)
    up._screen = Screen()
    await up._greet("http://127.0.0.1:1")
    assert "no answer within 0.01 s" in capsys.readouterr().err


def test_json_is_one_line_with_the_urls_and_a_signal_stops_everything(shell: Shell) -> None:
    with shell.start(*UP, "--json", "--replicas", "ingress=2,notifier=2") as process:
        urls = ready(process)
        assert urls["ws"].startswith("ws://")
        assert urls["redis"].startswith("redis://")
        wait_blocking(lambda: answers(urls["http"]), "ingress has made its first pass")
        assert len(shell.processes()) == 8  # six services, Redis, and the supervisor
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (OK, "")
    assert shell.processes() == []


def test_a_hangup_has_every_service_read_the_configuration_and_stops_nothing(shell: Shell) -> None:
    file = shell.folder / "headrace.toml"
    file.write_text("[tenants.ann]\n")
    with shell.start(*UP, "--json", "--config", str(file), HEADRACE_LOG_LEVEL="debug") as process:
        ready(process)
        before = shell.processes()
        wait_blocking(lambda: set(looks(shell)) == {1}, "each service has had its own first look")
        process.send_signal(signal.SIGHUP)
        wait_blocking(lambda: set(looks(shell)) == {2}, "each service has read the file again")
        assert shell.processes() == before


def looks(shell: Shell) -> list[int]:
    """How often each service has read a file that changes nothing: once by itself, then only when it is told to."""
    logs = [shell.folder / "headrace" / "log" / f"{name}.log" for name in SERVICES]
    return [log.read_text().count("changes nothing of the policy") for log in logs]


def test_a_terminal_that_closes_stops_everything(shell: Shell) -> None:
    ours, terminal = pty.openpty()
    with shell.start(*UP, "--json", terminal=terminal) as process:
        os.close(terminal)
        ready(process)
        os.close(ours)
        process.communicate(timeout=60)
    assert shell.processes() == []


def test_a_killed_supervisor_leaves_no_process(shell: Shell) -> None:
    with shell.start(*UP, "--json") as process:
        ready(process)
        process.kill()
    wait_blocking(lambda: not shell.processes(), "all have died with their parent")


def test_a_service_that_dies_is_started_again_on_its_port(shell: Shell) -> None:
    with shell.start(*UP, "--json") as process:
        told = ready(process)
        for name in ("ingress", "scheduler"):
            (url,) = told["replicas"][name]
            kill(service(shell, name))
            wait_blocking(partial(answers, url), f"{name} is back", timeout_s=60)


def kill(victim: int) -> None:
    os.kill(victim, signal.SIGKILL)
    wait_blocking(lambda: not alive(victim), "it has died")


def test_tasks_are_kept_over_a_restart(shell: Shell) -> None:
    first = shell.run(*UP, "--once", "remember me")
    assert first.returncode == OK, first.stderr
    with shell.start(*UP, "--json") as process:
        listed = shell.run("tasks", "--json", "--url", ready(process)["http"])
        (task,) = map(json.loads, listed.stdout.splitlines())
        assert task["status"] == "completed"


def test_two_deployments_do_not_share_a_folder(shell: Shell) -> None:
    with shell.start(*UP, "--json") as process:
        ready(process)
        second = shell.run(*UP, "--once", "hello")
        assert second.returncode == FAULT
        assert f"process {process.pid}" in second.stderr
        assert "--data-dir" in second.stderr


def test_a_port_in_use_is_told_before_anything_starts(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = shell.run("up", "--engine", "echo", "--ws-port", "0", "--port", str(port), "--once", "hello")
    assert done.returncode == FAULT
    assert f"127.0.0.1:{port}: Address already in use" in done.stderr
    assert "--port" in done.stderr


def test_an_evicting_redis_is_refused_with_the_remedy(shell: Shell) -> None:
    with redis_with(shell.folder, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as url:
        done = shell.run(*UP, "--once", "hello", REDIS_URL=url)
    assert done.returncode == FAULT
    assert "CONFIG SET maxmemory-policy noeviction" in done.stderr


def test_a_given_redis_without_a_log_works_and_is_warned_about(shell: Shell) -> None:
    with redis_with(shell.folder) as url:
        done = shell.run(*UP, "--once", "hello", REDIS_URL=url)
    assert (done.returncode, done.stdout) == (OK, "hello\n")
    assert "warning: Redis has appendonly off" in done.stderr


def test_a_redis_out_of_reach_is_told_without_its_password(shell: Shell) -> None:
    done = shell.run(*UP, "--once", "hello", REDIS_URL="redis://me:secret@127.0.0.1:1")
    assert done.returncode == FAULT
    assert "no Redis answers at redis://me:***@127.0.0.1:1" in done.stderr


def test_a_service_that_cannot_start_ends_everything_with_its_last_words(shell: Shell) -> None:
    done = shell.run(*UP, "--once", "hello", HEADRACE_SCHEDULER_COLOUR="red")
    assert done.returncode == FAULT
    assert "scheduler did not start (exit code 2)" in done.stderr
    assert "HEADRACE_SCHEDULER_COLOUR: unknown" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("content", "says"), [("[pools.a]\nengine = 'gpt'\nmodel = 'm'", "allowed: vllm, echo"), ("[", "not valid TOML")]
)
def test_a_faulty_configuration_is_told_whole(shell: Shell, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "headrace.toml").write_text(content)
    done = shell.run(*UP, "--once", "hello", "--config", str(tmp_path / "headrace.toml"))
    assert done.returncode == FAULT
    assert says in done.stderr


@pytest.mark.parametrize(
    "wrong", [["--replicas", "ingres=2"], ["--port", "70000"], ["--engine", "gpt"], ["--colour", "red"]]
)
def test_wrong_arguments_are_told_in_one_line(shell: Shell, wrong: list[str]) -> None:
    done = shell.run("up", *wrong)
    assert done.returncode == USAGE
    assert wrong[-1].partition("=")[0] in done.stderr
    assert "Traceback" not in done.stderr
