"""Programs of the examples, started as their READMEs say."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.support.waiting import wait_blocking


def python(*words: str | Path) -> str:
    """What a command of a README writes, once it has ended."""
    run = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    return run.stdout


@contextlib.contextmanager
def running(*words: str | Path, environ: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.PIPE, text=True, env=environ)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def serving(url: str, *words: str | Path, environ: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Once it answers at `url`."""

    def answers() -> bool:
        assert process.poll() is None, f"{words} ended with {process.returncode}"
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(url).is_success
        return False

    with running(*words, environ=environ) as process:
        wait_blocking(answers, f"{url} answers", timeout_s=60)
        yield process
