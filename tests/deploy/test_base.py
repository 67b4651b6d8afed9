"""The Kustomize base agrees with the images, the settings and itself."""

import pytest

from shared import config
from shared.settings import DRAIN_S
from tests.deploy.reading import (
    DEPLOY,
    PROJECT,
    SERVICES,
    TARGETS,
    check_variables,
    containers,
    port_of,
    read_base,
    read_compose,
    read_yaml,
)


def test_the_base_holds_every_service_and_every_file() -> None:
    (kustomization,) = read_yaml(DEPLOY / "base" / "kustomization.yaml")
    generated = {file for entry in kustomization["configMapGenerator"] for file in entry.get("files", [])}
    files = {path.name for path in (DEPLOY / "base").iterdir()}
    assert files == {*kustomization["resources"], *generated, "kustomization.yaml"}
    assert {name for name, _, _ in containers()} == set(SERVICES)
    assert ("StatefulSet", "redis") in read_base()


def test_the_base_selects_the_pods_it_makes() -> None:
    for (kind, name), made in read_base().items():
        if kind == "Service":
            workload = read_base().get(("Deployment", name)) or read_base()["StatefulSet", name]
            ports = workload["spec"]["template"]["spec"]["containers"][0]["ports"]
            assert made["spec"]["selector"] == workload["spec"]["template"]["metadata"]["labels"]
            assert [port["port"] for port in made["spec"]["ports"]] == [port["containerPort"] for port in ports]
        else:
            template = made["spec"]["template"]
            assert made["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"] == {"app": name}


def test_the_base_runs_images_of_this_version_on_their_ports() -> None:
    (kustomization,) = read_yaml(DEPLOY / "base" / "kustomization.yaml")
    tags = {image["name"]: image["newTag"] for image in kustomization["images"]}
    assert set(tags.values()) == {PROJECT["version"]}
    for name, _, container in containers():
        assert container["image"] in tags
        assert TARGETS[container["image"].removeprefix("headrace/")] == name
        assert container["ports"] == [{"name": "http", "containerPort": port_of(name)}]


def test_the_base_probes_and_bounds_every_service_and_lets_it_end() -> None:
    for name, pod, container in containers():
        assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert pod["terminationGracePeriodSeconds"] > 2 * DRAIN_S, name
        assert pod["enableServiceLinks"] is False, name


def test_the_base_gives_every_service_a_valid_environment_and_configuration() -> None:
    (kustomization,) = read_yaml(DEPLOY / "base" / "kustomization.yaml")
    maps = {entry["name"]: entry for entry in kustomization["configMapGenerator"]}
    environ = dict(literal.split("=", 1) for literal in maps["headrace-environment"]["literals"])
    check_variables(environ)
    assert environ["REDIS_URL"] == "redis://redis:6379"
    folder, _, file = environ["HEADRACE_CONFIG"].rpartition("/")
    assert maps["headrace"]["files"] == [file]
    assert config.load(str(DEPLOY / "base" / file)).pools == config.DEFAULT_POOLS
    for _, pod, container in containers():
        assert container["envFrom"] == [
            {"configMapRef": {"name": "headrace-environment"}},
            {"secretRef": {"name": "headrace-objects", "optional": True}},  # the cluster's own, where there is a bucket
        ]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert volumes[mounts[folder]]["configMap"] == {"name": "headrace"}
        assert set(mounts.values()) == set(volumes)


@pytest.mark.parametrize("service", ["compose", "base"])
def test_redis_keeps_what_it_acknowledged_and_evicts_nothing(service: str) -> None:
    if service == "compose":
        command = read_compose()["services"]["redis"]["command"]
    else:
        command = read_base()["StatefulSet", "redis"]["spec"]["template"]["spec"]["containers"][0]["args"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert (options["--appendonly"], options["--maxmemory-policy"]) == ("yes", "noeviction")
