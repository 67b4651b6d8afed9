"""`headrace batches`, as a user runs it."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Shell
from tests.flow.test_batches import line


@pytest.fixture
def tasks_file(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b"\n".join(line(number) for number in range(5)))
    return path


def test_a_file_runs_and_its_results_can_be_got(client: Shell, tasks_file: Path) -> None:
    made = client.run("batches", "create", str(tasks_file), "--watch")
    assert made.returncode == 0, made.stderr
    said = dict(text.split(maxsplit=1) for text in made.stdout.splitlines())
    assert (said["status"], said["items"]) == ("completed", "5: 5 completed")
    output = client.run("files", "get", said["output"]).stdout.splitlines()
    assert sorted(json.loads(text)["custom_id"] for text in output) == [f"item-{number}" for number in range(5)]
    batch_id = made.stderr.partition("headrace: ")[2].split()[0]
    listed = client.run("batches", "list")
    assert batch_id in listed.stdout
    assert "5: 5 completed" in listed.stdout
    late = client.run("batches", "cancel", batch_id)
    assert (late.returncode, "cannot be cancelled any more" in late.stderr) == (3, True)


def test_items_that_failed_and_faults_of_the_file_are_told(client: Shell, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(line(1) + b"\n" + line(2, method="GET"))
    view = json.loads(client.run("batches", "create", str(path), "--json").stdout)
    watched = client.run("batches", "watch", view["id"], "--json")
    assert watched.returncode == 3
    assert json.loads(watched.stdout)["request_counts"]["failed"] == 1
    path.write_bytes(line(2, method="GET"))
    failed = client.run("batches", "create", str(path), "--watch")
    assert (failed.returncode, "line 1: `method` is 'GET'" in failed.stderr) == (3, True)


def test_webhook_that_may_not_be_named_is_refused(client: Shell, tasks_file: Path) -> None:
    refused = client.run("batches", "create", str(tasks_file), "--webhook", "nobody")
    assert (refused.returncode, "`webhook` is 'nobody'" in refused.stderr) == (1, True)


def test_endpoint_is_that_of_the_first_line(client: Shell, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(line(1, url="/v1/completions"))
    assert json.loads(client.run("batches", "create", str(path), "--json").stdout)["endpoint"] == "/v1/completions"


def test_what_cannot_be_read_or_found_is_told(client: Shell, tmp_path: Path) -> None:
    missing = client.run("batches", "create", str(tmp_path / "no.jsonl"))
    assert (missing.returncode, "no.jsonl cannot be read" in missing.stderr) == (2, True)
    unknown = client.run("batches", "watch", "batch_1")
    assert (unknown.returncode, "There is no batch 'batch_1'" in unknown.stderr) == (1, True)
