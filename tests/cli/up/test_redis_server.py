import os
from pathlib import Path

import pytest

from services.cli.failure import Failure
from services.cli.up.home import claim
from services.cli.up.process import Program
from services.cli.up.redis_server import find_binary, own_server
from shared.config import Safety


def fake(folder: Path, name: str, version: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0 malloc=libc bits=64'\n")
    path.chmod(0o755)
    return str(path)


def test_an_old_server_on_the_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "redis-server", "6.0.16")
    newer = fake(tmp_path, "valkey-server", "8.1.0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_binary() == newer


def test_only_old_servers_are_told_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fake(tmp_path, "redis-server", "6.0.16")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Failure, match=f"{old} is version 6.0.16") as refused:
        find_binary()
    assert "headrace[embedded]" in str(refused.value)


def option(program: Program, name: str) -> str:
    return program.argv[program.argv.index(f"--{name}") + 1]


def test_own_server_syncs_each_write_when_that_is_promised(tmp_path: Path) -> None:
    with claim(tmp_path) as home:
        assert option(own_server(home, 6379, {}), "appendfsync") == "everysec"
        assert option(own_server(home, 6379, {}, Safety(durability="synced")), "appendfsync") == "always"


@pytest.mark.parametrize("safety", [Safety(durability="replicated"), Safety(durability="synced", replicas=1)])
def test_own_server_has_no_replicas(tmp_path: Path, safety: Safety) -> None:
    with claim(tmp_path) as home, pytest.raises(Failure, match="set REDIS_URL"):
        own_server(home, 6379, {}, safety)
