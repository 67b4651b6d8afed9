"""`headrace files`, as a user runs it."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Shell

LINES = b'{"custom_id": "a"}\n{"custom_id": "b"}\n'


@pytest.fixture
def tasks_file(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(LINES)
    return path


def test_a_file_goes_there_and_back_and_away(client: Shell, tasks_file: Path, tmp_path: Path) -> None:
    put = client.run("files", "put", str(tasks_file))
    file_id = put.stdout.strip()
    assert (put.returncode, put.stderr, file_id[:5]) == (0, "", "file-")
    listed = client.run("files", "list", "--json").stdout.splitlines()
    assert [(view["bytes"], view["lines"]) for view in map(json.loads, listed) if view["id"] == file_id] == [(38, 2)]
    table = client.run("files", "list", "--purpose", "batch").stdout
    assert file_id in table
    assert "tasks.jsonl" in table
    assert client.run("files", "get", file_id).stdout.encode() == LINES
    target = tmp_path / "back.jsonl"
    assert client.run("files", "get", file_id, "-o", str(target)).returncode == 0
    assert target.read_bytes() == LINES
    gone = client.run("files", "rm", file_id)
    assert (gone.returncode, gone.stdout) == (0, f"{file_id} removed\n")
    again = client.run("files", "rm", file_id)
    assert (again.returncode, file_id in again.stderr) == (3, True)


def test_how_long_it_is_kept_can_be_said(client: Shell, tasks_file: Path) -> None:
    view = json.loads(client.run("files", "put", str(tasks_file), "--keep-s", "7200", "--json").stdout)
    assert view["expires_at"] == view["created_at"] + 7200
    refused = client.run("files", "put", str(tasks_file), "--keep-s", "60")
    assert (refused.returncode, "allowed: 3600 to 2592000" in refused.stderr) == (1, True)
    client.run("files", "rm", view["id"])


def test_broken_lines_are_told(client: Shell, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(LINES + b"{\n")
    put = client.run("files", "put", str(path))
    assert "1 of 3 lines will fail: line 3: " in put.stderr
    client.run("files", "rm", put.stdout.strip())


def test_what_cannot_be_read_found_or_written_is_told(client: Shell, tasks_file: Path, tmp_path: Path) -> None:
    missing = client.run("files", "put", str(tmp_path / "no.jsonl"))
    assert (missing.returncode, "no.jsonl cannot be read: No such file" in missing.stderr) == (2, True)
    unknown = client.run("files", "get", "file-1")
    assert (unknown.returncode, "There is no file 'file-1'" in unknown.stderr) == (1, True)
    file_id = client.run("files", "put", str(tasks_file)).stdout.strip()
    nowhere = client.run("files", "get", file_id, "-o", str(tmp_path / "no" / "x"))
    assert (nowhere.returncode, "cannot be written: No such file" in nowhere.stderr) == (1, True)
    client.run("files", "rm", file_id)


def test_a_file_that_arrives_in_part_is_not_taken_for_it(client: Shell, tmp_path: Path) -> None:
    """The disk of the client is full."""
    large = tmp_path / "large"
    large.write_bytes(b"x" * 1_000_000)
    file_id = client.run("files", "put", str(large), "--purpose", "user_data").stdout.strip()
    target = tmp_path / "back"
    got = client.run("files", "get", file_id, "-o", str(target), file_bytes=100_000)
    assert (got.returncode, "cannot be written" in got.stderr) == (1, True)
    assert not target.exists()
    assert not (tmp_path / "back.part").exists()
    client.run("files", "rm", file_id)
