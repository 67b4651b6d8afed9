"""`headrace keys new`: what it prints is a key and a configuration that knows it."""

import tomllib

import pytest

from services.cli.failure import OK, USAGE
from shared import config
from shared.payer import Payer, of_key
from tests.cli.conftest import Shell


@pytest.fixture
def shell(tmp_path: object) -> Shell:
    return Shell(tmp_path)  # type: ignore[arg-type]


def test_the_printed_lines_let_the_printed_key_in(shell: Shell) -> None:
    done = shell.run("keys", "new", "--tenant", "acme", "--name", "acme.web")
    assert done.returncode == OK, done.stderr
    key, _, lines = done.stdout.partition("\n")
    read = config.parse("headrace.toml", f"[tenants.acme]\n{lines}".encode())
    assert of_key(read.policy, key) == Payer(tenant="acme", key="acme.web", named=True)
    assert key not in lines
    assert "Authorization: Bearer" in done.stderr
    assert "[tenants.acme]" in done.stderr


def test_a_key_without_a_name_has_its_tenants(shell: Shell) -> None:
    done = shell.run("keys", "new", "--tenant", "acme")
    assert list(tomllib.loads(done.stdout.partition("\n")[2])["keys"]) == ["acme"]


def test_no_two_are_alike(shell: Shell) -> None:
    assert len({shell.run("keys", "new", "--tenant", "acme").stdout for _ in range(2)}) == 2


@pytest.mark.parametrize("given", [["--tenant", "a b"], ["--tenant", "acme", "--name", 'x"y'], ["--name", "x"]])
def test_a_name_that_cannot_be_one_is_refused(shell: Shell, given: list[str]) -> None:
    done = shell.run("keys", "new", *given)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert "--tenant" in done.stderr or "--name" in done.stderr
