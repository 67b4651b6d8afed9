"""An engine over HTTP: one that is down or overloaded is left in peace, and no task is lost or failed for it; another Headrace
serves as one, and so does what makes trouble."""

import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import Struct
from openai import AsyncOpenAI

from services.inference.breaker import FAILED_TASKS
from tests.flow.test_task_life import MODEL, chat
from tests.support.deployment import Deployment, deployment
from tests.support.ports import free_port
from tests.support.upstream import HANG, LAST, STREAM, Endless, Part, chunked, frame, reply, troublemaker
from tests.support.waiting import wait_until

CONFIG = f"""
[pools.smol]
model = "{MODEL}"
engine = "echo"
[pools.smol.echo]
faults = true
[limits]
failures = 0
"""


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One of each service; with `faults` the echo engine counts as one over HTTP."""
    with deployment(tmp_path_factory.mktemp("remote"), config=CONFIG) as running:
        yield running


def measured(deployed: Deployment, name: str) -> float:
    """As the worker itself counts."""
    said = httpx.get(f"{deployed.replicas['inference'][0]}/metrics", timeout=30).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", said, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


async def test_after_many_refusals_tasks_wait_for_the_engine_instead_of_failing(remote: Deployment) -> None:
    async with httpx.AsyncClient(base_url=remote.http, timeout=30) as client:
        for number in range(FAILED_TASKS):
            refused = await client.post("/v1/chat/completions", json=chat(f"!busy {number}"))
            assert refused.status_code == 429
        assert measured(remote, 'hr_breaker_opened_total{why="failures"}') == 1
        answer = await client.post("/v1/chat/completions", json=chat("are you there"))
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == "are you there"


class Chain(Struct):
    """`outer` asks `inner`, under another name of the model, and whatever listens at one of `ports`."""

    outer: Deployment
    inner: Deployment
    ports: dict[str, int]
    """By pool: each test has one of its own, so none meets a breaker that another one has opened."""


INNER = f"""
[pools.smol]
model = "{MODEL}"
engine = "echo"
[pools.smol.echo]
tokens_per_s = 20
"""
OUTER = """
[pools.far]
model = "far"
engine = "openai"
[[pools.far.openai.upstreams]]
url = "{inner}/v1"
model = "{model}"
[limits]
failures = 1
"""
ODD = """
[pools.{name}]
model = "{name}"
engine = "openai"
[pools.{name}.openai]
{options}
[[pools.{name}.openai.upstreams]]
url = "http://127.0.0.1:{port}"
"""
POOLS = {
    "cut": "",
    "busy": "",
    "away": "",
    "page": "",
    "strict": "",
    "bad": "first_byte_s = 2.0\nbetween_bytes_s = 2.0",
}
"""With options of the engine."""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    ports = {name: free_port() for name in POOLS}
    odd = [ODD.format(name=name, options=POOLS[name], port=port) for name, port in ports.items()]
    with deployment(tmp_path_factory.mktemp("inner"), config=INNER) as inner:
        config = "".join([OUTER.format(inner=inner.http, model=MODEL), *odd])
        with deployment(tmp_path_factory.mktemp("outer"), config=config) as outer:
            yield Chain(outer, inner, ports)


def asked(model: str, text: str = "one two three", **more: Any) -> dict[str, Any]:
    return {**chat(text), "model": model, **more}


def client(chain: Chain) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=chain.outer.http, timeout=60)


async def test_another_headrace_answers_as_an_engine_of_this_one_does(chain: Chain) -> None:
    async with AsyncOpenAI(base_url=f"{chain.outer.http}/v1", api_key="none") as openai:
        whole = await openai.chat.completions.create(**asked("far"))
        stream = await openai.chat.completions.create(**asked("far", stream=True))
        said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert whole.choices[0].message.content == said == "one two three"
    assert whole.model == MODEL, "an answer is passed on as it was made"


async def test_a_task_that_is_cancelled_is_cancelled_upstream_too(chain: Chain) -> None:
    (worker,) = chain.inner.replicas["inference"]
    async with client(chain) as http:
        task = (await http.post("/v1/tasks", json={"body": asked("far", "to be " * 400)})).json()["id"]
        await wait_until(lambda: running(worker) == 1, "it runs upstream")
        await http.post(f"/v1/tasks/{task}/cancel")
        await wait_until(lambda: running(worker) == 0, "nothing runs upstream")


def running(worker: str) -> float:
    found = re.search(r"^hr_running_tasks (\S+)$", httpx.get(f"{worker}/metrics", timeout=30).text, re.MULTILINE)
    return float(found[1]) if found else 0


FRAMES = [
    b'{"id":"x","object":"chat.completion.chunk","created":1,"choices":[{"index":0,"delta":{"content":"one "}}]}',
    b'{"id":"x","object":"chat.completion.chunk","created":1,"choices":[{"index":0,"delta":{"content":"two"},"finish_reason":"stop"}]}',
]
GOOD = [STREAM, *(chunked(frame(data)) for data in [*FRAMES, b"[DONE]"]), LAST]


async def test_a_stream_that_was_cut_is_made_anew_and_its_reader_notices_nothing(chain: Chain) -> None:
    cut = [STREAM, chunked(frame(FRAMES[0]))]
    async with troublemaker(cut, GOOD, port=chain.ports["cut"]) as upstream:
        async with AsyncOpenAI(base_url=f"{chain.outer.http}/v1", api_key="none", max_retries=0) as openai:
            stream = await openai.chat.completions.create(**asked("cut", stream=True))
            said = [chunk.choices[0].delta.content async for chunk in stream]
    assert (said, len(upstream.asked)) == (["one ", "two"], 2)


async def test_a_refusal_is_tried_again_and_the_task_does_not_fail(chain: Chain) -> None:
    whole = b'{"choices":[{"message":{"content":"done"}}]}'
    refusal = reply(b"{}", 429, retry_after="1")
    async with troublemaker([refusal], [reply(whole)], port=chain.ports["busy"]) as upstream, client(chain) as http:
        answer = await http.post("/v1/chat/completions", json=asked("busy"))
    assert (answer.status_code, answer.content, len(upstream.asked)) == (200, whole, 2)


async def test_a_lone_task_waits_for_an_upstream_that_is_away_however_long_that_is(chain: Chain) -> None:
    async with client(chain) as http:
        task = (await http.post("/v1/tasks", json={"body": asked("away")})).json()["id"]

        async def tried_thrice() -> bool:
            return len((await http.get(f"/v1/tasks/{task}")).json().get("history", [])) >= 3

        await wait_until(tried_thrice, "it was tried more often than it may fail")
        async with troublemaker([reply(b'{"choices":[{"message":{"content":"done"}}]}')], port=chain.ports["away"]):
            done = (await http.get(f"/v1/tasks/{task}", params={"wait": 30})).json()
    assert (done["status"], done.get("failures", 0)) == ("completed", 0)
    assert {attempt["why"] for attempt in done["history"]} == {"upstream_open"}


async def test_a_page_instead_of_an_answer_is_an_error_in_the_end(chain: Chain) -> None:
    page = reply(b"<html>", kind="text/html")
    async with troublemaker([page], port=chain.ports["page"]) as upstream, client(chain) as http:
        answer = await http.post("/v1/chat/completions", json=asked("page"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
    assert "text/html instead of JSON" in answer.json()["error"]["message"]
    assert len(upstream.asked) == 2


async def test_a_fault_of_the_request_is_told_in_the_upstreams_words_and_not_tried_again(chain: Chain) -> None:
    error = b'{"error":{"message":"n is too large","type":"BadRequestError","param":"n","code":400}}'
    async with troublemaker([reply(error, 400)], port=chain.ports["strict"]) as upstream, client(chain) as http:
        answer = await http.post("/v1/chat/completions", json=asked("strict"))
    assert (answer.status_code, answer.json(), len(upstream.asked)) == (
        400,
        httpx.Response(200, content=error).json(),
        1,
    )


JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
BAD: dict[str, tuple[Sequence[Part], int, str]] = {
    "hangs": ([HANG], 504, "upstream_timeout"),
    "stops in the middle": ([JSON + b'{"choices":', HANG], 504, "upstream_timeout"),
    "breaks off": ([reply(b'{"choices":', content_length="999")], 502, "upstream_error"),
    "answers a page": ([reply(b"<html>", kind="text/html")], 502, "upstream_error"),
    "answers no text": ([reply(b'{"text":"\xff"}')], 502, "upstream_error"),
    "never ends": ([JSON, Endless(b" " * 65_536)], 507, "result_too_large"),
}
"""To requests with these words; and status and code of the line that tells of it."""


def line(words: str) -> bytes:
    body = asked("bad", words)
    return msgspec.json.encode({"custom_id": words, "method": "POST", "url": "/v1/chat/completions", "body": body})


@pytest.mark.timeout(240)
async def test_what_an_upstream_does_to_one_line_of_a_batch_costs_that_line_only(chain: Chain) -> None:
    good, whole = [f"good {number}" for number in range(8)], b'{"choices":[{"message":{"content":"done"}}]}'
    data = b"\n".join(map(line, [*good[:4], *BAD, *good[4:]]))
    async with troublemaker([reply(whole)], port=chain.ports["bad"]) as upstream:
        upstream.by_words = {words.encode(): parts for words, (parts, _, _) in BAD.items()}
        async with AsyncOpenAI(base_url=f"{chain.outer.http}/v1", api_key="none") as openai:
            file = await openai.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
            batch = await openai.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )

            async def ended() -> bool:
                return (await openai.batches.retrieve(batch.id)).status == "completed"

            await wait_until(ended, "the batch has ended", timeout_s=180)
            batch = await openai.batches.retrieve(batch.id)
            assert batch.output_file_id is not None
            assert batch.error_file_id is not None
            output, errors = [
                {said["custom_id"]: said["response"] for said in map(msgspec.json.decode, content.splitlines())}
                for content in [
                    (await openai.files.content(id)).content for id in (batch.output_file_id, batch.error_file_id)
                ]
            ]
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(good), len(BAD))
    assert output.keys() == set(good)
    told = {words: (said["status_code"], said["body"]["error"]["code"]) for words, said in errors.items()}
    assert told == {words: (status, code) for words, (_, status, code) in BAD.items()}
