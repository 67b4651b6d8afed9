"""The policy follows its file: however that is replaced, never half, never with a fault, and told to who must know."""

# ruff: noqa: ASYNC240 - the file is the subject; a write to it takes no time

import asyncio
import logging
import os
import signal
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from shared.config import Config, load
from shared.errors import BusUnavailable
from shared.policy import Policy, Tenant
from shared.reload import Reload, changes, watching
from tests.support.waiting import wait_until

KEY = "[keys.k]\ntenant = 'ann'\nsha256 = '" + "5" * 64 + "'\n"


@pytest.fixture(autouse=True)
def warnings_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "headrace.toml"
    path.write_text("[tenants.ann]\n")
    return path


def queued(config: Config, tenant: str = "ann") -> int:
    return config.policy.tenant(tenant).queued


def count(outcome: str) -> float:
    return REGISTRY.get_sample_value("hr_config_reloads_total", {"outcome": outcome}) or 0


async def settle(reload: Reload) -> None:
    """What a second and a bit would do: a change is taken when two looks find it alike."""
    await reload.look()
    await reload.look()


async def test_a_file_written_in_place_is_taken_when_two_looks_find_it_alike(file: Path) -> None:
    config = load(str(file))
    reload = Reload(config)
    await settle(reload)
    file.write_text("[tenants.ann]\nqueued = 7\n")
    await reload.look()
    assert queued(config) == 0
    await reload.look()
    assert queued(config) == 7


async def test_a_file_replaced_by_a_rename_is_taken(file: Path) -> None:
    config = load(str(file))
    reload = Reload(config)
    await settle(reload)
    other = file.with_suffix(".next")
    other.write_text("[tenants.bob]\n")
    stamps = file.stat()
    os.utime(other, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))  # same size, same time: another file all the same
    other.rename(file)
    await settle(reload)
    assert set(config.policy.tenants) == {"bob"}


async def test_a_link_that_is_swapped_as_for_a_config_map_is_taken(tmp_path: Path) -> None:
    """headrace.toml -> ..data/headrace.toml, ..data -> ..one: an update makes ..two and replaces the link ..data."""
    for version, number in (("..one", 1), ("..two", 2)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "headrace.toml").write_text(f"[tenants.ann]\nqueued = {number}\n")
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "headrace.toml").symlink_to("..data/headrace.toml")
    config = load(str(tmp_path / "headrace.toml"))
    reload = Reload(config)
    await settle(reload)
    assert queued(config) == 1
    (tmp_path / "..data_tmp").symlink_to("..two")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    await settle(reload)
    assert queued(config) == 2


async def test_half_a_file_is_refused_with_its_faults_and_the_whole_one_taken(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load(str(file))
    reload = Reload(config)
    await settle(reload)
    before = config.policy
    refused, taken = count("refused"), count("taken")
    file.write_text("[tenants.ann]\nqueued = 7\n[producers.p]\n[producers.q]\ntena")
    await settle(reload)
    assert "is not valid TOML" in caplog.text
    file.write_text("[tenants.ann]\nqueued = 7\n[producers.p]\n[producers.q]\ntenant = 'anm'\n")
    await settle(reload)
    assert "producers.p.tenant is missing" in caplog.text
    assert "producers.q.tenant is 'anm'" in caplog.text
    assert config.policy is before
    file.write_text("[tenants.ann]\nqueued = 7\n[producers.p]\ntenant = 'ann'\n")
    await settle(reload)
    assert (queued(config), set(config.policy.producers)) == (7, {"p"})
    assert (count("refused") - refused, count("taken") - taken) == (2, 1)


async def test_a_file_that_is_empty_for_a_moment_lifts_no_limit(file: Path) -> None:
    """An editor that writes in place empties the file first, and an empty file is valid: everybody may do everything."""
    file.write_text("[tenants.ann]\nqueued = 7\n")
    config = load(str(file))
    reload = Reload(config)
    await settle(reload)
    file.write_text("")
    await reload.look()
    assert queued(config) == 7
    file.write_text("[tenants.ann]\nqueued = 77\n")
    await settle(reload)
    assert queued(config) == 77


async def test_a_file_that_changes_while_it_is_read_is_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(str(file))
    reload = Reload(config)
    await settle(reload)
    reading: list[Path] = []
    read_bytes = Path.read_bytes

    def read_and_write(path: Path) -> bytes:
        read = read_bytes(path)
        if not reading:
            reading.append(path)
            path.write_text("[tenants.ann]\nqueued = 777\n")
        return read

    monkeypatch.setattr(Path, "read_bytes", read_and_write)
    file.write_text("[tenants.ann]\nqueued = 7\n")
    await settle(reload)
    assert (reading, queued(config)) == ([file], 0)
    await settle(reload)
    assert queued(config) == 777


async def test_a_refused_file_is_told_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    reload = Reload(load(str(file)))
    file.write_text("[tenant.ann]\n")
    for _ in range(5):
        await reload.look()
    assert len(caplog.records) == 1


async def test_what_changed_since_the_start_is_taken(file: Path) -> None:
    """A worker may load its engine for minutes between the reading of its configuration and the first look."""
    config = load(str(file))
    file.write_text("[tenants.ann]\nqueued = 7\n")
    await settle(Reload(config))
    assert queued(config) == 7


async def test_names_of_what_changed_are_logged_and_no_values(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    reload = Reload(load(str(file)))
    await settle(reload)
    file.write_text(
        KEY + "[tenants.ann]\nqueued = 7\n[tenants.bob]\n[lanes.batch]\nshare = 0.3\n[[cache]]\nttl_s = 5\n"
    )
    await settle(reload)
    (record,) = caplog.records
    assert record.getMessage() == f"policy taken from {file}: lanes ~batch; tenants ~ann +bob; keys +k; cache"
    file.write_text("")
    await settle(reload)
    assert caplog.messages[1].endswith(": lanes ~batch; tenants -ann -bob; keys -k; cache")
    assert "5" * 64 not in caplog.text


def test_ten_thousand_names_are_not_logged() -> None:
    many = Policy(tenants={f"t{number:05}": Tenant() for number in range(10_000)})
    (told,) = changes(Policy(), many)
    assert told.startswith("tenants +t00000 ")
    assert told.endswith(" +t00009 and 9990 more")


async def test_what_needs_a_restart_is_told_and_left_alone(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load(str(file))
    reload = Reload(config)
    await settle(reload)
    pools, limits = config.pools, config.limits
    file.write_text(
        "durability = 'synced'\n[tenants.ann]\nqueued = 7\n[limits]\nbacklog = 5\n[pools.b]\nmodel = 'm'\nengine = 'echo'\n"
    )
    await settle(reload)
    assert "durability, pools.b, pools.smol, limits.backlog changed, which needs a restart" in caplog.text
    assert (config.pools, config.limits, config.durability) == (pools, limits, "fast")
    assert queued(config) == 7


async def test_an_alias_of_a_pool_that_is_not_served_yet_is_refused(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load(str(file))
    reload = Reload(config)
    await settle(reload)
    file.write_text("[tenants.bob]\n[pools.b]\nmodel = 'm'\n[aliases.x]\ntargets = [{ model = 'm' }]\n")
    await settle(reload)
    assert "aliases.x.targets[0].model is 'm': no pool serves it; known: smollm2-135m-instruct" in caplog.text
    assert "bob" not in config.policy.tenants


async def test_a_file_that_is_gone_leaves_the_policy_and_is_taken_when_it_is_back(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text("[tenants.ann]\nqueued = 7\n")
    config = load(str(file))
    reload = Reload(config)
    await settle(reload)
    file.unlink()
    await settle(reload)
    assert queued(config) == 7
    assert [record.getMessage() for record in caplog.records] == [f"{file} is gone; the policy in force stays"]
    file.write_text("[tenants.ann]\nqueued = 8\n")
    await settle(reload)
    assert queued(config) == 8


async def test_a_file_that_appears_in_the_working_folder_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(None)
    reload = Reload(config)
    await settle(reload)
    assert not caplog.records
    Path("headrace.toml").write_text("[tenants.ann]\nqueued = 7\n")
    await settle(reload)
    assert queued(config) == 7


async def test_a_file_that_cannot_be_read_is_refused(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    reload = Reload(load(str(file)))
    await settle(reload)
    file.unlink()
    file.mkdir()
    await settle(reload)
    assert "cannot be read: Is a directory" in caplog.text


class Ledger:
    """A listener that fails as often as it was told to."""

    def __init__(self, config: Config, failures: int = 0) -> None:
        self._config, self._failures = config, failures
        self.heard: list[int] = []

    async def __call__(self) -> None:
        if self._failures:
            self._failures -= 1
            raise BusUnavailable("away")
        self.heard.append(queued(self._config))


async def test_listeners_hear_of_each_change_and_of_nothing_else(file: Path) -> None:
    config = load(str(file))
    reload, ledger = Reload(config), Ledger(config)
    reload.on_change(ledger)
    await settle(reload)
    file.touch()
    await settle(reload)
    assert ledger.heard == []
    for number in (7, 77):
        file.write_text(f"[tenants.ann]\nqueued = {number}\n")
        await settle(reload)
    assert ledger.heard == [7, 77]


async def test_a_listener_that_fails_is_told_again_and_no_other_twice(file: Path) -> None:
    config = load(str(file))
    reload, first, second = Reload(config), Ledger(config), Ledger(config, failures=2)
    reload.on_change(first)
    reload.on_change(second)
    file.write_text("[tenants.ann]\nqueued = 7\n")
    await reload.look()
    for _ in range(2):
        with pytest.raises(BusUnavailable):
            await reload.look()
    await settle(reload)
    assert (first.heard, second.heard) == ([7], [7])


async def test_a_forced_look_waits_for_no_second_one(file: Path) -> None:
    """Who sends SIGHUP says that the file is whole."""
    config = load(str(file))
    reload = Reload(config)
    await settle(reload)
    file.write_text("[tenants.ann]\nqueued = 7\n")
    reload.force()
    await reload.look()
    assert queued(config) == 7


async def test_a_forced_look_reads_a_refused_file_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    reload = Reload(load(str(file)))
    file.write_text("[tenant.ann]\n")
    await settle(reload)
    reload.force()
    await settle(reload)
    assert len(caplog.records) == 2


async def test_the_loop_of_a_service_hears_sighup_and_tells_its_listeners(file: Path) -> None:
    config = load(str(file))
    ledger = Ledger(config)
    loop = watching(config, ledger)
    running = asyncio.create_task(loop.run())
    try:
        await wait_until(lambda: loop.last_pass_s is not None, "it has looked once")
        file.write_text("[tenants.ann]\nqueued = 7\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await wait_until(lambda: ledger.heard == [7], "the listener was told")
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        await loop.stop()
        await running
