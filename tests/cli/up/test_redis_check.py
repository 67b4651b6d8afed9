from typing import Any

import pytest

from services.cli.up.redis_check import faults, parse_version, warnings

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
