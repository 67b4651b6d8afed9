"""Reading deploy/ for its tests."""

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from shared import settings
from shared.settings import SHARED, CommonSettings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SERVICES = ("ingress", "scheduler", "inference", "notifier")
TARGETS = {
    "ingress": "ingress",
    "scheduler": "scheduler",
    "notifier": "notifier",
    "inference": "inference",
    "inference-cpu": "inference",
    "inference-echo": "inference",
}
"""Image targets, and the service each runs."""


class Stage(Struct, kw_only=True):
    """One stage of the Dockerfile, without those it builds on."""

    parent: str
    env: dict[str, str]
    exposed: list[int]
    copied: list[str]
    ran: list[str]
    command: str = ""


def read_stages() -> dict[str, Stage]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            stages[name] = stage = Stage(parent=parent, env={}, exposed=[], copied=[], ran=[])
        elif word == "ENV":
            stage.env |= dict(part.split("=", 1) for part in shlex.split(rest))
        elif word == "EXPOSE":
            stage.exposed += map(int, rest.split())
        elif word == "COPY":
            stage.copied += [part for part in rest.split()[:-1] if not part.startswith("--")]
        elif word == "RUN":
            stage.ran.append(rest)
        elif word == "CMD":
            stage.command = " ".join(ast.literal_eval(rest))
    return stages


STAGES = read_stages()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def settings_of(service: str) -> type[CommonSettings]:
    kind: type[CommonSettings] = importlib.import_module(f"services.{service}.settings").Settings
    return kind


def load(service: str, environ: dict[str, str]) -> CommonSettings:
    """The service's settings in `environ`. Raises: ConfigError for a variable that it does not know."""
    return settings.load(settings_of(service), service, environ)


def port_of(service: str) -> int:
    """Where the service's container listens."""
    return load(service, STAGES[service].env).port


def check_variables(environ: dict[str, str]) -> None:
    """Every variable is read by some service, and valid."""
    for service in SERVICES:
        load(service, environ)
    prefixes = tuple(f"HEADRACE_{service.upper()}_" for service in SERVICES)
    assert [name for name in environ if name not in {*SHARED, *PASSED_ON} and not name.startswith(prefixes)] == []


def read_yaml(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


PASSED_ON = {
    f"AWS_{name}" for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "REGION", "ENDPOINT_URL")
}
"""To the library of the object store, which reads them itself."""


def read_compose(shell: Mapping[str, str] = {}) -> dict[str, Any]:
    """As docker compose reads it with the variables of `shell` set."""
    text = (DEPLOY / "compose.yaml").read_text()
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: shell.get(found[1]) or found[2], text)
    compose: dict[str, Any] = yaml.safe_load(text)
    for service in compose["services"].values():
        given = service.get("environment", {})
        service["environment"] = {
            name: value if value is not None else shell[name]
            for name, value in given.items()
            if value is not None or name in shell
        }
    return compose


def read_base() -> dict[tuple[str, str], Any]:
    """The objects of deploy/base by kind and name."""
    (kustomization,) = read_yaml(DEPLOY / "base" / "kustomization.yaml")
    documents = [d for file in kustomization["resources"] for d in read_yaml(DEPLOY / "base" / file)]
    objects = {(d["kind"], d["metadata"]["name"]): d for d in documents}
    assert len(objects) == len(documents)
    return objects


def containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(service, pod, container) of every service in deploy/base."""
    for (kind, name), made in read_base().items():
        if kind == "Deployment":
            pod = made["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            yield name, pod, container
