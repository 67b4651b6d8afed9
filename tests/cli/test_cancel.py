"""`headrace cancel`, and what Ctrl-C cancels, against a deployment that answers slowly."""

import json
import signal
from collections.abc import Iterator

import httpx
import pytest

from services.cli.failure import INTERRUPTED, OK, TASK_FAILED
from tests.cli.conftest import Shell
from tests.support.deployment import Deployment, deployment
from tests.support.waiting import wait_blocking

WORDS = " ".join(f"w{number}" for number in range(1000))
SLOW = """
[pools.smol]
model = "smollm2-135m-instruct"
engine = "echo"
[pools.smol.echo]
tokens_per_s = 20.0
"""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("slow"), config=SLOW) as running:
        yield running


@pytest.fixture
def patient(slow: Deployment, tmp_path: object) -> Shell:
    return Shell(tmp_path, HEADRACE_URL=slow.http)  # type: ignore[arg-type]


def status(slow: Deployment, task: str) -> str:
    return str(httpx.get(f"{slow.http}/v1/tasks/{task}", timeout=30).json()["status"])


def test_running_tasks_are_cancelled_and_their_followers_told(patient: Shell, slow: Deployment) -> None:
    ids = [patient.run("submit", "--no-wait", "--text", WORDS).stdout.strip() for _ in range(2)]
    with patient.start("watch", ids[0]) as watching:
        assert watching.stdout is not None
        assert watching.stdout.read(2) == "w0"
        done = patient.run("cancel", *ids)
        assert (done.returncode, len(done.stdout.splitlines())) == (OK, 2)
        _, err = watching.communicate(timeout=30)
    assert (watching.returncode, "cancelled" in err) == (TASK_FAILED, True)
    wait_blocking(lambda: status(slow, ids[1]) == "cancelled", "the other one is cancelled too")
    again = patient.run("cancel", "--json", ids[0])
    assert (json.loads(again.stdout)["status"], again.returncode) == ("cancelled", OK)


def test_an_unknown_id_is_told_and_stops_nothing(patient: Shell) -> None:
    unknown = f"smol.0.0.0.{'0' * 26}"
    done = patient.run("cancel", "nope", unknown)
    assert (done.returncode, done.stderr) == (TASK_FAILED, "headrace: 'nope' is not the id of a task.\n")
    assert done.stdout == f"{unknown} unknown; cancelled if it comes\n"


def test_a_watcher_that_leaves_cancels_nothing(patient: Shell, slow: Deployment) -> None:
    task = patient.run("submit", "--no-wait", "--text", WORDS).stdout.strip()
    with patient.start("watch", task) as watching:
        assert watching.stdout is not None
        assert watching.stdout.read(2) == "w0"
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == INTERRUPTED
    shown = patient.run("tasks", task).stdout
    assert "processing" in shown
    assert "expires in     24 h" in shown
    assert httpx.get(f"{slow.http}/v1/tasks/{task}", timeout=30).json().get("stop") is None
    patient.run("cancel", task)


def test_an_interrupted_question_is_cancelled(patient: Shell, slow: Deployment) -> None:
    """Nobody else waits for it: its client's connection is what keeps it alive."""
    with patient.start("ask", "--max-tokens", "1000", WORDS) as asking:
        assert asking.stdout is not None
        assert asking.stdout.read(2) == "w0"
        newest = httpx.get(f"{slow.http}/v1/tasks", params={"limit": 1}, timeout=30).json()["data"][0]
        assert newest["status"] == "processing"
        asking.send_signal(signal.SIGINT)
        assert asking.wait(30) == INTERRUPTED
    wait_blocking(lambda: status(slow, newest["id"]) == "cancelled", "the question is cancelled", timeout_s=30)
