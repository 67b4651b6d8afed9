"""The older servers that tests run on: whole or not at all, and never a failure of the set-up."""

import os
import sys
from pathlib import Path
from subprocess import CompletedProcess, run

import pytest

from deploy import redis_servers
from tests.support import redis


def fetch(folder: Path, path: str) -> "CompletedProcess[str]":
    command = [sys.executable, redis_servers.__file__, str(folder)]
    return run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60, check=False)  # noqa: TID251


@pytest.mark.skipif(redis.given_url() is not None, reason="REDIS_TEST_URL names the one server to test on")
def test_scripts_are_tested_on_two_versions_at_least() -> None:
    assert len(redis.servers().keys() & set(redis.VERSIONS)) >= 2, f"found only {redis.servers()}"


def test_a_server_is_found_under_the_version_that_it_says_of_itself() -> None:
    for version, path in redis.servers().items():
        said = run([path, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
        assert f"v={version}." in said


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    for version in ("7.0", "7.4"):
        (tmp_path / version).mkdir()
    done = fetch(tmp_path, "")
    assert (done.returncode, done.stdout) == (0, "")


def test_without_apt_the_debian_server_is_left_out_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "7.4").mkdir()
    done = fetch(tmp_path, str(tmp_path))
    assert done.returncode == 1
    assert "Redis 7.0 is left out of the tests" in done.stdout
    assert "no apt-get here" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["7.4"]


def unpack_fake(version: str, content: Path) -> None:
    binary = content / "usr" / "bin" / "redis-server"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\necho Redis server v={version} $LD_LIBRARY_PATH\n")
    binary.chmod(0o755)
    (content / "usr" / "lib").mkdir()
    (content / "usr" / "lib" / "libz.so.1").touch()


def test_a_server_is_placed_with_a_launcher_that_knows_its_libraries(tmp_path: Path) -> None:
    redis_servers.place(tmp_path / "7.0", lambda parcels, content: unpack_fake("7.0.15", content))
    moved = (tmp_path / "7.0").rename(tmp_path / "moved")
    said = run([str(moved / "redis-server")], capture_output=True, text=True, timeout=60, check=True).stdout
    assert said == f"Redis server v=7.0.15 {moved / 'usr' / 'lib'}\n"


def test_another_version_than_the_wanted_one_is_not_placed(tmp_path: Path) -> None:
    with pytest.raises(redis_servers.Unavailable, match=r"v=8\.0\.2"):
        redis_servers.place(tmp_path / "7.0", lambda parcels, content: unpack_fake("8.0.2", content))
    assert list(tmp_path.iterdir()) == []
