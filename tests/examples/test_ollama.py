"""Two servers of one model: a real llama.cpp, and another one behind a door like Ollama's (`tests/support/ollama.py`)."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from msgspec import Struct

from tests.architecture.sources import ROOT
from tests.support.deployment import Deployment, deployment
from tests.support.llama_cpp import Process, process
from tests.support.waiting import wait_blocking

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(180)]
QUESTION = [{"role": "user", "content": "Tell me a long story about a mill."}]
TOKENS = 40
NOT_PULLED = """
[pools.llama]
model = "llama3.2"
engine = "openai"
[[pools.llama.openai.upstreams]]
url = "{ollama}/v1"
model = "llama3.2:1b"
"""


class Servers(Struct):
    ollama: Process
    llama_cpp: Process
    deployed: Deployment
    client: openai.OpenAI

    def calls(self, of: Process, outcome: str) -> float:
        """Those that an upstream has answered, as the worker counts."""
        said = "".join(
            httpx.get(f"{worker}/metrics", timeout=30).text for worker in self.deployed.replicas["inference"]
        )
        labels = f'outcome="{outcome}",upstream="{of.url}/v1"'
        return sum(map(float, re.findall(rf"^hr_upstream_calls_total{{{re.escape(labels)}}} (\S+)$", said, re.M)))

    def ask(self, **more: Any) -> Any:
        """A chat, or the chunks of one."""
        asked: dict[str, Any] = {"model": "smollm2", "messages": QUESTION, "temperature": 0, "max_tokens": TOKENS}
        return self.client.chat.completions.create(**asked | more)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("ollama")
    with (
        process("tests.support.ollama", folder) as ollama,
        process("tests.support.llama_cpp", folder, "smollm2") as llama_cpp,
    ):
        config = (ROOT / "examples" / "ollama" / "headrace.toml").read_text()
        config = config.replace("http://127.0.0.1:11434", ollama.url).replace("http://127.0.0.1:8001", llama_cpp.url)
        config += NOT_PULLED.format(ollama=ollama.url)
        with deployment(folder, config=config) as deployed:
            with openai.OpenAI(base_url=f"{deployed.http}/v1", api_key="none", max_retries=0, timeout=120) as client:
                yield Servers(ollama, llama_cpp, deployed, client)


def test_a_chat_is_answered_whole_and_streamed_with_the_same_words(servers: Servers) -> None:
    servers.ollama.start()
    servers.llama_cpp.kill()
    whole = servers.ask()
    assert (whole.model, whole.system_fingerprint) == ("smollm2:135m", "fp_ollama")
    chunks = list(servers.ask(stream=True, stream_options={"include_usage": True}))
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == whole.choices[0].message.content
    assert len(said) > 50
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].usage.completion_tokens == TOKENS


def test_a_model_that_is_not_pulled_is_an_error_in_ollamas_words(servers: Servers) -> None:
    servers.ollama.start()
    with pytest.raises(openai.NotFoundError, match=r"model 'llama3\.2:1b' not found"):
        servers.ask(model="llama3.2")


def test_a_reader_sees_nothing_of_an_ollama_that_restarts_in_mid_stream(servers: Servers) -> None:
    servers.ollama.start()
    servers.llama_cpp.kill()
    expected, failed = servers.ask(max_tokens=60), servers.calls(servers.ollama, "failed")
    stream = servers.ask(max_tokens=60, stream=True)
    chunks = [next(stream) for _ in range(5)]
    servers.ollama.kill()
    servers.ollama.start()
    chunks += stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert servers.calls(servers.ollama, "failed") > failed


def test_while_one_server_is_down_the_other_one_answers(servers: Servers) -> None:
    servers.llama_cpp.start()
    servers.ollama.kill()
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: servers.ask(), range(4)))
    assert {answer.system_fingerprint for answer in answers}.isdisjoint({"fp_ollama"})
    assert {answer.choices[0].finish_reason for answer in answers} == {"length"}


def test_two_servers_share_the_load(servers: Servers) -> None:
    servers.ollama.start()
    servers.llama_cpp.start()
    both = (servers.ollama, servers.llama_cpp)
    before = [servers.calls(server, "ok") for server in both]

    def shared() -> bool:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: servers.ask(max_tokens=8), range(4)))
        return all(servers.calls(server, "ok") > was for server, was in zip(both, before, strict=True))

    wait_blocking(shared, "each has answered", timeout_s=100)
