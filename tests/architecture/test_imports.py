"""Services meet only in Redis: what one may import of another is nothing."""

from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, SERVICES, imports_of, name_of, python_files

SHARED = sorted((ROOT / "shared").rglob("*.py"))


def of_services(path: Path) -> set[str]:
    """The services that a file imports from."""
    return {module.split(".")[1] for module in imports_of(path) if module.startswith("services.")}


@pytest.mark.parametrize("path", SHARED, ids=name_of)
def test_shared_imports_no_service(path: Path) -> None:
    assert of_services(path) == set()
    assert "services" not in set(imports_of(path))


@pytest.mark.parametrize("service", SERVICES)
def test_service_imports_itself_and_shared_only(service: str) -> None:
    for path in (ROOT / "services" / service).rglob("*.py"):
        assert of_services(path) <= {service}, name_of(path)


def test_vllm_is_imported_in_two_files() -> None:
    importers = {name_of(path) for path in python_files() if {m.split(".")[0] for m in imports_of(path)} & {"vllm"}}
    assert importers <= {"services/inference/engine_vllm.py", "services/inference/vllm_state.py"}


def test_nothing_of_the_product_imports_tests_or_deploy() -> None:
    for path in python_files():
        assert not {"tests", "deploy"} & {module.split(".")[0] for module in imports_of(path)}, name_of(path)


def test_every_service_has_the_same_skeleton() -> None:
    for service in SERVICES[:4]:
        folder = ROOT / "services" / service
        for part in ("__init__", "__main__", "settings", "app", "metrics"):
            assert (folder / f"{part}.py").exists(), f"{service} has no {part}.py"
        assert len((folder / "__main__.py").read_text().splitlines()) <= 30
