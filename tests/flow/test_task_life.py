"""The life of a task as each kind of user sees it. Start reading here."""

import json
from typing import Any

import httpx

from tests.support.deployment import Deployment
from tests.support.websocket import PushClient

MODEL = "smollm2-135m-instruct"


def chat(text: str, **more: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


async def test_an_http_client_asks_and_gets_the_whole_answer(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=chat("hello big world"))
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "hello big world"
    assert answer.json()["usage"]["completion_tokens"] == 3
    task = (await http.get(f"/v1/tasks/{answer.headers['x-headrace-task']}")).json()
    assert task["status"] == "completed"
    assert task["result"] == answer.json()


async def test_an_http_client_asks_for_a_stream_and_gets_the_chunks(http: httpx.AsyncClient) -> None:
    async with http.stream("POST", "/v1/chat/completions", json=chat("hello big world", stream=True)) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        frames = [line[6:] async for line in answer.aiter_lines() if line.startswith("data: ")]
    assert frames[-1] == "[DONE]"
    deltas = [json.loads(frame)["choices"][0]["delta"].get("content", "") for frame in frames[:-1]]
    assert "".join(deltas) == "hello big world"


async def test_a_web_page_submits_over_http_and_watches_over_websocket(
    echo: Deployment, http: httpx.AsyncClient
) -> None:
    submitted = await http.post("/v1/tasks", json={"body": chat("hello big world", stream=True), "session": "page-1"})
    assert submitted.status_code == 202
    task = submitted.json()["id"]
    async with PushClient(echo.ws) as page:
        await page.follow(task)
        await page.until_end(task)
    stored = (await http.get(f"/v1/tasks/{task}")).json()
    assert page.tasks[task].text == "hello big world"
    assert page.tasks[task].text == stored["result"]["choices"][0]["message"]["content"]


async def test_a_page_that_follows_its_session_sees_tasks_submitted_later(
    echo: Deployment, http: httpx.AsyncClient
) -> None:
    async with PushClient(echo.ws) as page:
        await page.follow_session("page-2")
        await page.send({"t": "ping", "ts": 1})
        while not any(message["t"] == "pong" for message in page.other):
            await page.receive()
        submitted = await http.post("/v1/tasks", json={"body": chat("later", stream=True), "session": "page-2"})
        await page.until_end(submitted.json()["id"])
    assert page.tasks[submitted.json()["id"]].text == "later"


async def test_a_closed_laptop_comes_back_to_another_replica_and_misses_nothing(
    echo: Deployment, http: httpx.AsyncClient
) -> None:
    words = " ".join(f"w{number}" for number in range(40))
    task = (await http.post("/v1/tasks", json={"body": chat(words, stream=True)})).json()["id"]
    first, second = echo.sockets()
    async with PushClient(first) as page:
        await page.follow(task)
        while page.tasks[task].n == 0:
            await page.receive()
    async with PushClient(second) as again:
        again.tasks = page.tasks
        page.tasks[task].end = None
        await again.follow(task)
        await again.until_end(task)
    assert again.tasks[task].text == words


async def test_another_system_adds_an_entry_and_reads_the_answer_from_its_own_stream(
    producer: Any,
) -> None:
    entry = {"model": MODEL, "input_text": "two words", "reply_to": "orders", "task_id": "order-1"}
    await producer.xadd("hr:requests", entry)
    [[_, [[_, reply]]]] = await producer.xread({"hr:reply:orders": "0"}, block=30_000, count=1)
    assert reply["task_id"] == "order-1"
    assert reply["status"] == "completed"
    assert reply["text"] == "two words"
    assert json.loads(reply["reply"])["result"]["choices"][0]["message"]["content"] == "two words"


async def test_a_poller_waits_for_the_result_in_one_request(http: httpx.AsyncClient) -> None:
    task = (await http.post("/v1/tasks", json={"input_text": "wait for me"})).json()["id"]
    done = (await http.get(f"/v1/tasks/{task}", params={"wait": "20"})).json()
    assert done["status"] == "completed"
    assert done["result"]["choices"][0]["message"]["content"] == "wait for me"


async def test_the_same_key_names_the_same_task(http: httpx.AsyncClient) -> None:
    envelope = {"input_text": "once", "task_id": "key-1"}
    first, again = [(await http.post("/v1/tasks", json=envelope)).json()["id"] for _ in range(2)]
    other = await http.post("/v1/tasks", json={"input_text": "another body", "task_id": "key-1"})
    assert first == again
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "idempotency_conflict"


async def test_curl_follows_a_task_by_server_sent_events(http: httpx.AsyncClient) -> None:
    submitted = (await http.post("/v1/tasks", json={"input_text": "plain old events"})).json()
    async with http.stream("GET", submitted["links"]["events"]) as events:
        lines = [line async for line in events.aiter_lines()]
    messages = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert "".join(message.get("d", "") for message in messages) == "plain old events"
    assert messages[-1]["t"] == "done"


async def test_a_list_shows_the_newest_tasks_of_a_session_first(http: httpx.AsyncClient) -> None:
    ids = [(await http.post("/v1/tasks", json={"input_text": "x", "session": "list-1"})).json()["id"] for _ in range(3)]
    listed = (await http.get("/v1/tasks", params={"session": "list-1", "limit": "2"})).json()["data"]
    assert [task["id"] for task in listed] == ids[:0:-1]
