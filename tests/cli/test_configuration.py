"""`headrace config check`: a file is judged without anything that runs."""

from pathlib import Path

from services.cli.failure import FAULT, OK, USAGE
from tests.cli.conftest import Shell

EVERYTHING = """
durability = "replicated"
replicas = 2
[pools.big]
model = "large"
shards = 2
[pools.small]
model = "small"
engine = "echo"
[lanes.batch]
share = 0.2
run_s = 90
[tenants."*"]
[keys.ann]
tenant = "acme"
sha256 = "%s"
[producers.billing]
tenant = "acme"
[aliases.best]
targets = [{ model = "large", weight = 3 }, { model = "small", variant = "trial" }]
fallbacks = ["small"]
shadow = { model = "small", share = 0.05 }
[templates.summary]
messages = [{ role = "user", content = "Sum up: {{ input_text }}" }]
[[cache]]
ttl_s = 60
"""


def test_a_valid_file_is_summed_up(shell: Shell) -> None:
    file = shell.folder / "other.toml"
    file.write_text(EVERYTHING % ("a" * 64))
    done = shell.run("config", "check", str(file))
    assert (done.returncode, done.stderr) == (OK, "")
    assert done.stdout.splitlines() == [
        f"{file} is valid.",
        "  durability replicated, 2 replicas",
        "  pool       big: large (vllm, 2 shards)",
        "  pool       small: small (echo, 1 shard)",
        "  lane       interactive: 63.6 % of the tokens",
        "  lane       normal: 18.2 % of the tokens",
        "  lane       batch: 18.2 % of the tokens, at most 50 % of a worker's slots, 90 s for a run",
        "  tenants    1: *",
        "  producers  1: billing",
        "  keys       1: ann; required",
        "  alias      best: large 75 %, trial 25 %; else small; shadow small 5 %",
        "  templates  1: summary",
        "  cache      1 rule",
    ]


def test_every_fault_is_told_and_the_exit_code_says_so(shell: Shell) -> None:
    file = shell.folder / "other.toml"
    file.write_text("[tenants.ann]\nweight = 0\n[lanes.fast]\n")
    done = shell.run("config", "check", str(file))
    assert (done.returncode, done.stdout) == (FAULT, "")
    assert done.stderr.splitlines() == [
        f"headrace: {file} has 2 faults:",
        "  lanes.fast: unknown; known: lanes.batch, lanes.interactive, lanes.normal",
        "  tenants.ann.weight is 0: Expected `float` > 0.0",
    ]


def test_the_file_is_found_as_the_services_find_it(shell: Shell) -> None:
    file = shell.folder / "other.toml"
    file.write_text("[tenants.ann]")
    done = shell.run("config", "check", HEADRACE_CONFIG=str(file))
    assert "  tenants    1: ann\n" in done.stdout


def test_what_to_do_with_a_file_must_be_said(shell: Shell) -> None:
    assert shell.run("config").returncode == USAGE


def test_a_long_list_of_names_is_cut(shell: Shell) -> None:
    file = Path(shell.folder / "other.toml")
    file.write_text("".join(f"[tenants.t{number:02}]\n" for number in range(12)))
    assert (
        " 12: t00, t01, t02, t03, t04, t05, t06, t07, t08, t09 and 2 more\n"
        in shell.run("config", "check", str(file)).stdout
    )
