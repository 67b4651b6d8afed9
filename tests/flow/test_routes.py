"""Every route through the real services on the echo engine, as the `openai` client calls it."""

import base64
import io
import json
import wave
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from shared.routes import ROUTES
from tests.flow.test_task_life import MODEL
from tests.support.deployment import Deployment
from tests.support.waiting import wait_until
from tests.support.websocket import PushClient


@pytest.fixture
async def client(echo: Deployment) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{echo.http}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_embeddings_come_as_the_client_asks_for_them(client: openai.AsyncOpenAI) -> None:
    packed = await client.embeddings.create(
        model=MODEL, input=["a b", "c"]
    )  # the client asks for base64, and unpacks it
    plain = await client.embeddings.create(model=MODEL, input=["a b", "c"], encoding_format="float")
    assert [len(item.embedding) for item in packed.data] == [16, 16]
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding)
    assert plain.usage.total_tokens == 3


async def test_a_response_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    whole = await client.responses.create(model=MODEL, input="to be or not")
    assert (whole.output_text, whole.status, whole.id[:10]) == ("to be or not", "completed", "resp_smol.")
    events = [event async for event in await client.responses.create(model=MODEL, input="to be or not", stream=True)]
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "to be or not"
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "to be or not"


async def test_a_message_whole_and_streamed(http: httpx.AsyncClient) -> None:
    asked = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "to be"}]}
    whole = (await http.post("/v1/messages", json=asked)).json()
    assert (whole["type"], whole["content"], whole["stop_reason"]) == (
        "message",
        [{"type": "text", "text": "to be"}],
        "end_turn",
    )
    frames = (await http.post("/v1/messages", json={**asked, "stream": True})).text.split("\n\n")
    assert frames.pop() == ""
    named = [frame.split("\n") for frame in frames]
    assert all(name == f"event: {json.loads(data[6:])['type']}" for name, data in named)
    assert [name[7:] for name, _ in named][-2:] == ["message_delta", "message_stop"]
    assert (await http.post("/v1/messages/count_tokens", json=asked)).json() == {"input_tokens": 2}


async def test_errors_of_messages_have_their_own_shape(http: httpx.AsyncClient) -> None:
    for body, status in ((b"{", 400), (b'{"model":"nope"}', 404)):
        refused = await http.post("/v1/messages", content=body)
        assert (refused.status_code, refused.json()["type"]) == (status, "error")
        assert refused.json()["error"]["message"]


async def test_speech_comes_as_the_sound_it_is(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    spoken = await client.audio.speech.create(model=MODEL, voice="alloy", input="do re mi", response_format="wav")
    assert spoken.response.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(spoken.content)) as sound:
        assert sound.getnframes() == 1200
    task = spoken.response.headers["x-headrace-task"]
    view = (await http.get(f"/v1/tasks/{task}")).json()
    url = f"/v1/tasks/{task}/result"
    assert view["result"] == {"content_type": "audio/wav", "bytes": len(spoken.content), "url": url}
    stored = await http.get(url)
    assert (stored.headers["content-type"], stored.content) == ("audio/wav", spoken.content)


async def test_a_sound_is_taken_in_as_a_form(client: openai.AsyncOpenAI) -> None:
    sound = bytes(range(256)) * 40
    said = await client.audio.transcriptions.create(model=MODEL, file=("a.wav", sound))
    assert said.text == f"a.wav {len(sound)} bytes"
    with pytest.raises(openai.BadRequestError, match="response_format=json, not 'srt'"):
        await client.audio.transcriptions.create(model=MODEL, file=("a.wav", sound), response_format="srt")


async def test_a_form_fits_into_an_envelope_and_a_sound_into_no_reply(
    echo: Deployment, http: httpx.AsyncClient, producer: Any
) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="b.wav"\r\n\r\n\xff\xfe\r\n--x--\r\n'
    body = {"content_type": "multipart/form-data; boundary=x", "body": base64.b64encode(form).decode()}
    sent = await http.post("/v1/tasks", json={"route": "/v1/audio/transcriptions", "reply_to": "routes", **body})
    speech = {"body": {"model": MODEL, "input": "do", "voice": "alloy"}, "route": "/v1/audio/speech"}
    spoken = await http.post("/v1/tasks", json={**speech, "reply_to": "routes"})
    replies: dict[str, Any] = {}

    async def both_came() -> bool:
        for _, fields in await producer.xrange("hr:reply:routes"):
            reply = json.loads(fields["reply"])
            replies[reply["id"]] = reply
        return len(replies) == 2

    await wait_until(both_came, "both replies came")
    assert replies[sent.json()["id"]]["text"] == "b.wav 2 bytes"
    id = spoken.json()["id"]
    assert replies[id]["result"] == {"content_type": "audio/wav", "bytes": 844, "url": f"/v1/tasks/{id}/result"}
    async with PushClient(echo.ws) as page:
        await page.follow(id)
        await page.until_end(id)
    await producer.delete("hr:reply:routes")


async def test_a_result_is_there_when_the_task_has_ended(http: httpx.AsyncClient) -> None:
    asked = {"body": {"model": MODEL, "prompt": "x"}, "route": "/v1/completions"}
    waiting = (await http.post("/v1/tasks", json={**asked, "not_before": 4e9 / 2})).json()
    if "id" in waiting:  # refused where a task may not wait for so long
        assert (await http.get(f"/v1/tasks/{waiting['id']}/result")).status_code == 409
    refused = (await http.post("/v1/completions", json={"model": MODEL, "prompt": "x", "n": 3})).headers
    result = await http.get(f"/v1/tasks/{refused['x-headrace-task']}/result")
    assert (result.status_code, result.json()["error"]["param"]) == (400, "n")


@pytest.mark.parametrize("route", ROUTES)
async def test_what_the_engine_does_not_serve_it_refuses_itself(http: httpx.AsyncClient, route: str) -> None:
    answer = await http.post(route, json={"model": MODEL})
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["message"]
    assert answer.headers["x-headrace-task"]


async def test_a_page_sees_the_text_of_a_response(echo: Deployment, http: httpx.AsyncClient) -> None:
    asked = {"body": {"model": MODEL, "input": "hello big world", "stream": True}, "route": "/v1/responses"}
    task = (await http.post("/v1/tasks", json=asked)).json()["id"]
    async with PushClient(echo.ws) as page:
        await page.follow(task)
        await page.until_end(task)
    assert page.tasks[task].text == "hello big world"
    view = (await http.get(f"/v1/tasks/{task}")).json()
    assert (view["finish_reason"], view["usage"]["output_tokens"]) == ("completed", 3)


# -- responses that are kept


async def test_a_response_in_the_background_is_told_at_once_and_found_by_its_id(client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model=MODEL, input="to be", background=True, metadata={"k": "v"})
    assert made.status in ("queued", "in_progress", "completed")
    assert (made.background, made.metadata) == (True, {"k": "v"})

    async def completed() -> bool:
        return (await client.responses.retrieve(made.id)).status == "completed"

    await wait_until(completed, "the response is completed")
    found = await client.responses.retrieve(made.id)
    assert (found.id, found.output_text, found.background) == (made.id, "to be", True)
    cancelled = await client.responses.cancel(made.id)
    assert cancelled.status == "completed"


async def test_a_response_follows_another_one(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    first = await client.responses.create(model=MODEL, input="one two")
    second = await client.responses.create(model=MODEL, input="three", previous_response_id=first.id)
    assert (second.previous_response_id, second.output_text) == (first.id, "three")
    assert second.usage is not None
    assert second.usage.input_tokens == 5  # input and output of the first, and its own
    third = await client.responses.create(model=MODEL, input="four", previous_response_id=second.id)
    assert third.usage is not None
    assert third.usage.input_tokens == 7
    asked: list[Any] = [item async for item in client.responses.input_items.list(third.id, limit=2, order="asc")]
    assert [item.content[0].text for item in asked] == ["one two", "one two", "three", "three", "four"]
    assert len({item.id for item in asked}) == 5


async def test_what_is_not_kept_deleted_or_nobodys_is_not_found(client: openai.AsyncOpenAI) -> None:
    unkept = await client.responses.create(model=MODEL, input="a", store=False)
    deleted = await client.responses.create(model=MODEL, input="a")
    await client.responses.delete(deleted.id)
    for id in (unkept.id, deleted.id, f"{deleted.id[:-1]}0"):
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(id)
        with pytest.raises(openai.NotFoundError) as caught:
            await client.responses.create(model=MODEL, input="b", previous_response_id=id)
        assert caught.value.param == "previous_response_id"
        with pytest.raises(openai.NotFoundError):
            await client.responses.delete(id)
    with pytest.raises(openai.BadRequestError, match="`background` is true and `store` is false"):
        await client.responses.create(model=MODEL, input="a", background=True, store=False)
    with pytest.raises(openai.BadRequestError, match="not in the background"):
        await client.responses.cancel((await client.responses.create(model=MODEL, input="a")).id)


async def test_a_stream_in_the_background_is_gone_on_with_behind_any_event(client: openai.AsyncOpenAI) -> None:
    first = await client.responses.create(model=MODEL, input="a b c d", background=True, stream=True)
    events = [event async for event in first]
    created = events[0]
    assert created.type == "response.created"
    id = created.response.id
    assert created.response.background
    for number in range(-1, len(events) - 1):
        after = {"starting_after": number} if number >= 0 else {}
        rest = [event async for event in await client.responses.retrieve(id, stream=True, **after)]  # type: ignore[call-overload]
        assert rest == events[number + 1 :]


async def test_a_response_that_was_not_streamed_can_be_streamed_when_it_is_there(client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model=MODEL, input="to be")
    events = [event async for event in await client.responses.retrieve(made.id, stream=True)]
    assert events[-1].type == "response.completed"
    late = [event async for event in await client.responses.retrieve(made.id, stream=True, starting_after=99)]
    assert [event.type for event in late] == ["response.completed"]


@pytest.mark.parametrize("query", ["stream=yes", "starting_after=1", "stream=true&starting_after=x", "include=y"])
async def test_odd_questions_are_refused(http: httpx.AsyncClient, client: openai.AsyncOpenAI, query: str) -> None:
    made = await client.responses.create(model=MODEL, input="to be")
    assert (await http.get(f"/v1/responses/{made.id}?{query}")).status_code == 400
