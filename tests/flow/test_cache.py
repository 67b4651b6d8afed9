"""The same question again, from every door: one run of the engine, and everybody is told that it was so."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.flow.test_task_life import MODEL, chat
from tests.support.deployment import Deployment, deployment
from tests.support.waiting import wait_until
from tests.support.websocket import PushClient

CONFIG = f"""
[pools.smol]
model = "{MODEL}"
engine = "echo"
slots = 4
[pools.smol.echo]
tokens_per_s = 100.0
faults = true
[limits]
failures = 0
results_kept_s = 600
[[cache]]
ttl_s = 300
"""
CHAT, HIT = "/v1/chat/completions", "x-headrace-cache"


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Answers of requests with temperature 0 are kept; a word takes 10 ms."""
    folder: Path = tmp_path_factory.mktemp("cache")
    with deployment(folder, "--replicas", "ingress=2,scheduler=2,inference=2,notifier=2", config=CONFIG) as running:
        yield running


@pytest.fixture
async def http(echo: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=echo.http, timeout=60, limits=limits) as client:
        yield client


@pytest.fixture
async def producer(echo: Deployment) -> AsyncIterator[Any]:
    client: Any = redis.asyncio.Redis.from_url(echo.redis, decode_responses=True, socket_timeout=60)
    yield client
    await client.aclose()


def same(text: str, **more: object) -> dict[str, object]:
    """A deterministic chat."""
    return chat(text, temperature=0, **more)


async def ask(http: httpx.AsyncClient, body: dict[str, object], **headers: str) -> httpx.Response:
    answer = await http.post(
        CHAT, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    assert answer.status_code == 200, answer.text
    return answer


def pieces(stream: str) -> list[Any]:
    """The chunks of an event stream, which has ended as it must."""
    frames = [line[6:] for line in stream.splitlines() if line.startswith("data: ")]
    assert frames.pop() == "[DONE]"
    return [json.loads(frame) for frame in frames]


async def replies(producer: Any, name: str, count: int) -> list[Any]:
    found: list[Any] = []

    async def come() -> bool:
        nonlocal found
        found = [json.loads(fields["reply"]) for _, fields in await producer.xrange(f"hr:reply:{name}")]
        return len(found) >= count

    await wait_until(come, f"{count} replies in {name}")
    return found


async def test_the_same_again_is_answered_with_the_same_bytes_and_says_so(http: httpx.AsyncClient) -> None:
    first = await ask(http, same("say it twice"))
    again = await ask(http, same("say it twice", user="somebody else"))
    assert HIT not in first.headers
    assert again.headers[HIT] == "hit"
    assert again.content == first.content
    assert again.headers["x-headrace-task"] != first.headers["x-headrace-task"]
    view = (await http.get(f"/v1/tasks/{again.headers['x-headrace-task']}")).json()
    assert (view["status"], view["cache"], view["result"]) == ("completed", "hit", first.json())


async def test_what_no_rule_fits_runs_each_time(http: httpx.AsyncClient) -> None:
    first, again = [await ask(http, chat("say it anew")) for _ in range(2)]
    assert HIT not in again.headers
    assert first.json()["id"] != again.json()["id"]


async def test_a_request_says_what_it_wants_of_the_cache(http: httpx.AsyncClient) -> None:
    first = await ask(http, chat("for a while"), x_headrace_cache="60")
    assert (await ask(http, chat("for a while"), x_headrace_cache="60")).content == first.content
    assert HIT not in (await ask(http, chat("for a while"))).headers, "without a word or a rule nothing is looked up"
    kept = await ask(http, same("refreshed"))
    assert HIT not in (await ask(http, same("refreshed"), x_headrace_cache="off")).headers
    assert (await ask(http, same("refreshed"))).content == kept.content
    fresh = await ask(http, same("refreshed"), x_headrace_cache="refresh")
    assert HIT not in fresh.headers
    assert (await ask(http, same("refreshed"))).json()["id"] == fresh.json()["id"] != kept.json()["id"]


@pytest.mark.parametrize("said", ["soon", "0", "601", "refresh"])
async def test_what_cannot_be_done_is_refused_by_name(http: httpx.AsyncClient, said: str) -> None:
    answer = await http.post(CHAT, json=chat("x"), headers={HIT: said})
    assert answer.status_code == 400
    assert "cache" in answer.json()["error"]["param"]


@pytest.mark.parametrize("kept_whole", [True, False])
async def test_streamed_and_whole_requests_share_an_answer(http: httpx.AsyncClient, kept_whole: bool) -> None:
    text = f"shared by {kept_whole}"
    streamed = same(text, stream=True, stream_options={"include_usage": True})
    first = await ask(http, same(text) if kept_whole else streamed)
    assert HIT not in first.headers
    chunks = pieces((hit := await ask(http, streamed)).text)
    assert hit.headers[HIT] == "hit"
    assert hit.headers["content-type"].startswith("text/event-stream")
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": text}
    assert chunks[0]["choices"][0]["finish_reason"] == "stop"
    assert (chunks[1]["choices"], chunks[1]["usage"]["completion_tokens"]) == ([], 3)
    whole = await ask(http, same(text))
    assert whole.headers[HIT] == "hit"
    assert whole.json()["choices"][0]["message"]["content"] == text
    assert whole.json()["usage"] == chunks[1]["usage"]


async def test_stream_that_did_not_ask_for_usage_gets_none(http: httpx.AsyncClient) -> None:
    await ask(http, same("without usage"))
    body = same("without usage", stream=True)
    await ask(http, body)
    chunks = pieces((hit := await ask(http, body)).text)
    assert hit.headers[HIT] == "hit"
    assert [chunk for chunk in chunks if chunk.get("usage")] == []
    assert len(chunks) == 1
    whole = await ask(http, same("without usage"))
    assert whole.json()["usage"]["completion_tokens"] == 2


async def test_every_door_gets_the_answer_of_any_other(
    echo: Deployment, http: httpx.AsyncClient, producer: Any
) -> None:
    text = "one answer for all"
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0}
    first = await ask(http, body)
    task = (await http.post("/v1/tasks", json={"body": body, "session": "cached-page"})).json()["id"]
    view = (await http.get(f"/v1/tasks/{task}", params={"wait": "20"})).json()
    assert (view["cache"], view["result"]) == ("hit", first.json())
    await producer.xadd("hr:requests", {"task": json.dumps({"body": body, "reply_to": "cached", "task_id": "c-1"})})
    flat = {"model": MODEL, "input_text": text, "temperature": "0", "reply_to": "cached", "task_id": "c-2"}
    await producer.xadd("hr:requests", flat)
    for reply in await replies(producer, "cached", 2):
        assert (reply["cache"], reply["text"], reply["result"]) == ("hit", text, first.json())
    async with PushClient(echo.ws) as page:
        await page.follow(task)
        await page.until_end(task)
    assert page.tasks[task].text == text
    off = {"body": body, "cache": "off"}
    alone = (await http.post("/v1/tasks", json=off)).json()["id"]
    assert "cache" not in (await http.get(f"/v1/tasks/{alone}", params={"wait": "20"})).json()


async def test_a_page_that_waits_for_its_session_is_told_of_hits(echo: Deployment, http: httpx.AsyncClient) -> None:
    await ask(http, same("told live"))
    async with PushClient(echo.ws) as page:
        await page.follow_session("live-page")
        await page.send({"t": "ping", "ts": 1})
        while not any(message["t"] == "pong" for message in page.other):
            await page.receive()
        envelope = {"body": same("told live"), "session": "live-page"}
        task = (await http.post("/v1/tasks", json=envelope)).json()["id"]
        await page.until_end(task)
    assert page.tasks[task].text == "told live"


async def test_a_hundred_that_ask_the_same_at_once_run_the_engine_once(http: httpx.AsyncClient) -> None:
    text = " ".join(f"w{number}" for number in range(50))
    usage = {"include_usage": True}
    bodies = [same(text, user=str(n)) if n % 2 else same(text, stream=True, stream_options=usage) for n in range(100)]
    answers = await asyncio.gather(*(ask(http, body) for body in bodies))
    made = {answer.json()["id"] if n % 2 else pieces(answer.text)[0]["id"] for n, answer in enumerate(answers)}
    assert len(made) == 1, "each run has an id of its own"
    assert [answer.headers.get(HIT) for answer in answers].count(None) == 1
    assert {answer.headers.get(HIT) for answer in answers} <= {None, "hit", "followed"}


async def test_followers_outlive_the_client_that_asked_first(http: httpx.AsyncClient, producer: Any) -> None:
    """The first client leaves, so its task is cancelled; the next in line leads, and nobody else notices."""
    body = same(" ".join(f"v{number}" for number in range(400)))  # it takes 4 s: five can come meanwhile

    async def five_follow() -> bool:
        return 5 in [await producer.zcard(key) for key in await producer.keys("hr:{smol.0}:followers:*")]

    first = asyncio.create_task(http.post(CHAT, json=body))
    await wait_until(lambda: producer.keys("hr:{smol.0}:flight:*"), "the first one leads")
    others = [asyncio.create_task(ask(http, body)) for _ in range(5)]
    await wait_until(five_follow, "they wait for it")
    first.cancel()
    answers = await asyncio.gather(*others)
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert [answer.headers.get(HIT) for answer in answers].count(None) == 1


async def test_a_request_that_fails_fails_for_each_that_made_it(http: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(http.post(CHAT, json=same("!error at once")) for _ in range(4)))
    assert [answer.status_code for answer in answers] == [500] * 4
    assert [answer for answer in answers if HIT in answer.headers] == []
