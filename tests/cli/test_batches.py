"""`headrace batches`, as a user runs it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from services.cli.batches import made
from services.cli.failure import Failure
from shared.request import CHAT
from tests.cli.conftest import Shell
from tests.flow.test_batches import line

Answer = httpx.Response | Exception
Answers = Sequence[Answer]


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


def test_batch_that_is_refused_leaves_no_upload_behind(client: Shell, tasks_file: Path) -> None:
    name = "of-a-refused-batch.jsonl"
    path = tasks_file.rename(tasks_file.with_name(name))
    refused = client.run("batches", "create", str(path), "--webhook", "nobody")
    assert (refused.returncode, "`webhook` is 'nobody'" in refused.stderr) == (1, True)
    assert "Its upload was removed." in refused.stderr
    assert name not in client.run("files", "list", "--json").stdout


def server(batch: Answers, file: Answers = ()) -> tuple[httpx.AsyncClient, list[str]]:
    """A server that answers so, in turn, to the making of a batch and to the removal of a file; and what it was asked."""
    answers, asked = {"POST": list(batch), "DELETE": list(file)}, list[str]()

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.headers.get('idempotency-key', '')}".strip())
        said = answers[request.method].pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    return httpx.AsyncClient(base_url="http://there", transport=httpx.MockTransport(answer)), asked


ASKED = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h"}


def refusal() -> httpx.Response:
    return httpx.Response(400, json={"error": {"message": "no such window"}})


@pytest.mark.parametrize(
    ("removal", "told"),
    [
        (httpx.Response(200, json={}), "Its upload was removed."),
        (httpx.Response(404, json={"error": {"message": "there is none"}}), "Its upload stays (there is none); "),
        (httpx.ReadError("cut"), "Its upload stays (cut); `headrace files rm file-1` removes it."),
    ],
)
async def test_what_became_of_the_upload_of_a_refused_batch_is_told(removal: Answer, told: str) -> None:
    client, _ = server([refusal()], [removal])
    async with client:
        with pytest.raises(Failure, match=f"no such window\n{re.escape(told)}"):
            await made(client, ASKED)


async def test_upload_stays_if_nobody_knows_whether_there_is_a_batch() -> None:
    client, asked = server([httpx.Response(500)])
    async with client:
        with pytest.raises(Failure, match="file-1 was uploaded; whether a batch was made of it"):
            await made(client, ASKED)
    assert len(asked) == 1


async def test_answer_that_is_lost_is_asked_for_again_under_the_same_key() -> None:
    client, asked = server([httpx.ReadError("cut"), httpx.Response(200, json={"id": "batch_1"})])
    async with client:
        assert await made(client, ASKED) == {"id": "batch_1"}
    assert asked[0] == asked[1] != "POST"


def test_endpoint_is_that_of_the_first_line(client: Shell, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(line(1, url="/v1/completions"))
    assert json.loads(client.run("batches", "create", str(path), "--json").stdout)["endpoint"] == "/v1/completions"


def test_what_cannot_be_read_or_found_is_told(client: Shell, tmp_path: Path) -> None:
    missing = client.run("batches", "create", str(tmp_path / "no.jsonl"))
    assert (missing.returncode, "no.jsonl cannot be read" in missing.stderr) == (2, True)
    unknown = client.run("batches", "watch", "batch_1")
    assert (unknown.returncode, unknown.stderr) == (1, "headrace: There is no batch 'batch_1'; it may have expired.\n")
