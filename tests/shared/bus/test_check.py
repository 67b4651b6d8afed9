import pytest

from shared.bus.check import faults, parse_info, warnings
from shared.config import Safety

REPLICATED, SYNCED = Safety(durability="replicated"), Safety(durability="synced")
GOOD = {"aof_enabled": "1", "connected_slaves": "1"}


@pytest.mark.parametrize(
    ("safety", "info", "appendfsync", "has_waitaof", "remedy"),
    [
        (SYNCED, {"aof_enabled": "0"}, "everysec", True, "appendonly yes"),
        (SYNCED, GOOD, "everysec", False, "upgrade it to 7.2"),
        (SYNCED, GOOD, "", False, "appendfsync always"),
        (SYNCED, GOOD, "no", True, "appendfsync everysec"),
        (Safety(durability="synced", replicas=1), GOOD, "always", False, "replicas = 0"),
    ],
)
def test_each_fault_comes_with_its_remedy(
    safety: Safety, info: dict[str, str], appendfsync: str, has_waitaof: bool, remedy: str
) -> None:
    (fault,) = faults(safety, info, appendfsync, has_waitaof=has_waitaof)
    assert 'durability is "synced"' in fault
    assert remedy in fault


@pytest.mark.parametrize("safety", [Safety(), REPLICATED])
def test_other_modes_ask_nothing_of_the_append_only_file(safety: Safety) -> None:
    assert faults(safety, {"aof_enabled": "0"}, "no", has_waitaof=False) == []


@pytest.mark.parametrize(("safety", "appendfsync"), [(SYNCED, "everysec"), (SYNCED, "always"), (SYNCED, "")])
def test_server_that_can_keep_it_has_no_fault(safety: Safety, appendfsync: str) -> None:
    assert faults(safety, GOOD, appendfsync, has_waitaof=True) == []
    assert warnings(safety, GOOD) == []


def test_info_is_read_by_name() -> None:
    assert parse_info(b"# Server\r\nredis_version:7.0.15\r\n\r\nrole:master\r\n") == {
        "redis_version": "7.0.15",
        "role": "master",
    }


@pytest.mark.parametrize(("replicas", "told"), [(0, False), (1, False), (2, True)])
def test_missing_replicas_are_a_warning_for_they_may_come_back(replicas: int, told: bool) -> None:
    safety = Safety(durability="replicated", replicas=replicas)
    assert faults(safety, GOOD, "everysec", has_waitaof=True) == []
    assert bool(warnings(safety, GOOD)) == told
