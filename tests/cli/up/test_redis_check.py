from typing import Any

import pytest

from services.cli.failure import Failure
from services.cli.up.redis_check import check, faults, parse_version, warnings
from shared.config import Safety

GOOD: dict[str, Any] = {
    "redis_version": "7.0.15",
    "redis_mode": "standalone",
    "role": "master",
    "maxmemory_policy": "noeviction",
    "aof_enabled": 1,
}


def test_a_plain_server_is_accepted() -> None:
    assert faults(GOOD) == []
    assert warnings(GOOD) == []


@pytest.mark.parametrize(
    ("changed", "remedy"),
    [
        ({"redis_version": "6.2.14"}, "6.2.14, Headrace needs 7.0 or newer: upgrade it"),
        ({"redis_mode": "cluster", "cluster_enabled": 1}, "cluster-enabled no"),
        ({"role": "slave", "master_host": "db1", "master_port": 6379}, "name its master, db1:6379"),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": 1}, "CONFIG SET maxmemory-policy noeviction"),
        ({"maxmemory_policy": "volatile-ttl", "maxmemory": 0}, "CONFIG SET maxmemory-policy noeviction"),
    ],
)
def test_each_fault_comes_with_its_remedy(changed: dict[str, Any], remedy: str) -> None:
    (fault,) = faults(GOOD | changed)
    assert remedy in fault


def test_all_faults_are_told_at_once() -> None:
    assert len(faults(GOOD | {"redis_version": "5.0.3", "role": "slave", "maxmemory_policy": "allkeys-lfu"})) == 3


def test_no_append_only_file_is_a_warning() -> None:
    (warning,) = warnings(GOOD | {"aof_enabled": 0})
    assert "CONFIG SET appendonly yes" in warning


def test_versions_compare_as_numbers() -> None:
    assert parse_version("10.2.1") > parse_version("7.0.0") > parse_version("6.2.14") > parse_version("")


@pytest.mark.parametrize(
    ("safety", "remedy"),
    [
        (Safety(durability="synced"), "CONFIG SET appendonly yes"),
        (Safety(durability="replicated"), "no task is accepted"),
    ],
)
def test_what_the_durability_needs_is_looked_at(redis_url: str, safety: Safety, remedy: str) -> None:
    """A shared test server: no append-only file, no replica. The first is refused, replicas may still come."""
    try:
        said = "\n".join(check(redis_url, safety))
    except Failure as refused:
        assert safety.durability == "synced"
        said = str(refused)
    assert remedy in said


def test_server_that_is_asked_for_nothing_more_has_only_the_warning_about_its_file(redis_url: str) -> None:
    assert len(check(redis_url, Safety())) == 1
