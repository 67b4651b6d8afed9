"""Compose and Prometheus agree with the images, the settings and each other."""

import ast
from pathlib import Path

import pytest

from shared import config
from shared.payer import check_door
from shared.policy import Policy
from shared.settings import DRAIN_S
from tests.deploy.reading import (
    DEPLOY,
    PASSED_ON,
    ROOT,
    SERVICES,
    STAGES,
    TARGETS,
    check_variables,
    load,
    port_of,
    read_compose,
    read_yaml,
)


def test_compose_runs_every_service_from_its_target() -> None:
    services = read_compose()["services"]
    assert set(services) == {*SERVICES, "redis", "prometheus"}
    for name in SERVICES:
        build = services[name]["build"]
        assert TARGETS[build["target"]] == name
        assert services[name]["image"] == f"headrace/{build['target']}"
        assert (DEPLOY / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()


def test_compose_sets_only_variables_that_services_know() -> None:
    for name in SERVICES:
        service = read_compose()["services"][name]
        check_variables(service["environment"])
        mounted = dict(volume.split(":")[:2][::-1] for volume in service["volumes"])
        assert (DEPLOY / mounted[service["environment"]["HEADRACE_CONFIG"]]).resolve() == DEPLOY / "headrace.toml"


def test_compose_hands_a_bucket_and_its_keys_on_to_every_service() -> None:
    for shell in ({}, {"HEADRACE_OBJECTS": "s3://bucket/x", **dict.fromkeys(PASSED_ON, "y")}):
        for name in SERVICES:
            service = read_compose(shell)["services"][name]
            check_variables(service["environment"])
            given = {key: value for key, value in service["environment"].items() if key in {*shell, "HEADRACE_OBJECTS"}}
            assert given == {"HEADRACE_OBJECTS": "file:///var/lib/headrace/objects"} | shell


@pytest.mark.parametrize("path", [DEPLOY / "headrace.toml", DEPLOY / "base" / "headrace.toml"], ids=str)
def test_doors_that_listen_on_every_address_open_as_they_are_configured(path: Path) -> None:
    """Whoever publishes them further is told by the file to make keys."""
    deployed = config.load(str(path))
    check_door(deployed.policy, load("ingress", STAGES["ingress"].env).host)
    assert deployed.policy == Policy(keys_required=False)
    assert deployed.pools == config.DEFAULT_POOLS
    assert "headrace keys new" in path.read_text()


def test_compose_probes_and_publishes_the_ports_that_services_listen_on() -> None:
    for name in SERVICES:
        service = read_compose()["services"][name]
        assert f"http://127.0.0.1:{port_of(name)}/readyz" in service["healthcheck"]["test"][-1]
        ast.parse(service["healthcheck"]["test"][-1])
        for published in service.get("ports", []):
            address, outside, inside = published.split(":")
            assert (address, int(outside), int(inside)) == ("127.0.0.1", port_of(name), port_of(name))


def test_compose_gives_services_the_time_to_end_and_volumes_that_exist() -> None:
    compose = read_compose()
    for name in SERVICES:
        assert int(compose["services"][name]["stop_grace_period"].removesuffix("s")) > 2 * DRAIN_S
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]


def test_the_link_to_the_notifier_is_where_the_notifier_is_published() -> None:
    published = read_compose()["services"]
    url = published["ingress"]["environment"]["HEADRACE_INGRESS_NOTIFIER_URL"]
    assert published["notifier"]["ports"] == [f"{url.removeprefix('http://')}:{port_of('notifier')}"]


def test_prometheus_asks_every_service_where_it_listens() -> None:
    (document,) = read_yaml(DEPLOY / "prometheus" / "prometheus.yml")
    asked = {job["job_name"]: job["dns_sd_configs"] for job in document["scrape_configs"]}
    assert asked.keys() == set(SERVICES) <= read_compose()["services"].keys()
    for name, (target,) in asked.items():
        assert (target["names"], target["type"], target["port"]) == ([name], "A", port_of(name))


def test_every_yaml_file_is_used() -> None:
    files = [path for pattern in ("*.yaml", "*.yml") for path in DEPLOY.rglob(pattern)]
    known = {DEPLOY / "compose.yaml", DEPLOY / "prometheus" / "prometheus.yml"}
    assert {path for path in files if path.parent != DEPLOY / "base"} == known
    assert all(read_yaml(path) for path in files)
