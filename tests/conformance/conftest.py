"""Headrace with its real services, and vLLM's own servers, with the same options."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec import Struct

from services.inference.models import resolve
from shared.engine_options import Flag
from tests.conformance import ADAPTER, EMBEDDER, MODEL
from tests.conformance.adapter import RANK, write_adapter
from tests.support.deployment import deployment
from tests.support.vllm_server import SOURCE, vllm_server

START_S = 400
"""Four engines at once on two cores that others use too."""
MEMORY = 128 * 1024 * 1024
COMMON: dict[str, Flag] = {"dtype": "float32", "max-model-len": 1024, "kv-cache-memory-bytes": MEMORY}
SPEAKING = COMMON | {
    "enable-auto-tool-choice": True,
    "tool-call-parser": "hermes",
    "enable-lora": True,
    "max-lora-rank": RANK,
}
EMBEDDING = COMMON | {"runner": "pooling", "convert": "embed"}
ONE_THREAD = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "OMP_PROC_BIND": "false"}
"""Several engines share the cores: a step of one that has a thread on each would wait for the busiest."""


class Urls(Struct):
    """Base URLs, without /v1."""

    headrace: str
    vllm: str
    vllm_embedder: str


def toml(options: Mapping[str, Flag]) -> str:
    """An inline table: TOML writes numbers, words, strings and lists as JSON does."""
    return "{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in options.items()) + " }"


def config(speaking: Mapping[str, Flag]) -> str:
    return f"""
[pools.smol]
model = "{MODEL}"
adapters = ["{ADAPTER}"]
[pools.smol.vllm]
options = {toml(speaking)}
[pools.embedder]
model = "{EMBEDDER}"
[pools.embedder.vllm]
options = {toml(EMBEDDING)}
"""


@pytest.fixture(scope="package")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Urls]:
    """All start at once: what an engine does until it runs is mostly the work of one thread."""
    ours, theirs, embedding, lora = (tmp_path_factory.mktemp(name) for name in ("headrace", "vllm", "embedder", "lora"))
    speaking = SPEAKING | {"lora-modules": [f"{ADAPTER}={write_adapter(lora, resolve(SOURCE))}"]}
    served = deployment(ours, "--engine", "vllm", config=config(speaking), environ=ONE_THREAD, timeout_s=START_S)
    own = vllm_server(theirs, speaking, environ=ONE_THREAD, timeout_s=START_S)
    other = vllm_server(embedding, EMBEDDING, model=EMBEDDER, environ=ONE_THREAD, timeout_s=START_S)
    with contextlib.ExitStack() as running:
        with ThreadPoolExecutor() as threads:
            headrace = threads.submit(running.enter_context, served)
            urls = [threads.submit(running.enter_context, server) for server in (own, other)]
        yield Urls(headrace.result().http, *(url.result() for url in urls))


@pytest.fixture(scope="package")
def headrace(urls: Urls) -> str:
    """Serves MODEL and EMBEDDER."""
    return urls.headrace


@pytest.fixture(scope="package")
def vllm(urls: Urls) -> str:
    """Serves MODEL."""
    return urls.vllm


@pytest.fixture(scope="package")
def vllm_embedder(urls: Urls) -> str:
    """Serves EMBEDDER: a server of vLLM's has one model."""
    return urls.vllm_embedder
