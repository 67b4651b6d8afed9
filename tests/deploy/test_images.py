"""The Dockerfile has a target for every service, with its extra, its code and its port."""

import re
from pathlib import Path

from tests.deploy.reading import DEPLOY, PROJECT, ROOT, SERVICES, STAGES, TARGETS, load, port_of, settings_of


def test_every_target_runs_its_service_and_carries_no_other() -> None:
    assert set(STAGES) - {"base", "build"} == set(TARGETS)
    for target, service in TARGETS.items():
        stage = STAGES[target]
        code = {path for path in stage.copied if path.startswith(("services", "shared"))}
        assert (stage.parent, stage.command) == ("build", f"python -m services.{service}"), target
        assert code == {"shared", "services/__init__.py", f"services/{service}"}, target


def test_images_install_their_own_extra_of_the_project_and_nothing_else() -> None:
    extras = set(PROJECT["optional-dependencies"])
    for target, service in TARGETS.items():
        (install,) = (ran for ran in STAGES[target].ran if not ran.startswith("apt-get"))
        named = re.fullmatch(r"pip install --editable \"\.\[(.+)\]\"", install)
        if named is None:
            assert install == "python deploy/setup.py --extras cpu"
            continue
        asked = named[1].split(",")
        assert asked[0] == service
        assert extras.issuperset(asked), target


def test_what_the_dockerfile_copies_exists_and_is_not_hidden_from_the_builder() -> None:
    shown = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    for stage in STAGES.values():
        for path in stage.copied:
            assert (ROOT / path).exists(), path
            assert any(Path(path).match(pattern) or path.startswith(f"{pattern}/") for pattern in shown), path


def test_containers_listen_where_the_image_says_so() -> None:
    for target, service in TARGETS.items():
        listening = load(service, STAGES[target].env)
        assert listening.host == "0.0.0.0"
        assert STAGES[target].exposed == [listening.port]
        default = settings_of(service)().port
        assert default in (0, listening.port), f"{service} listens on {default} elsewhere"
    assert len({port_of(service) for service in SERVICES}) == len(SERVICES)
