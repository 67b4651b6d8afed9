"""Each call is sent to Headrace and to vLLM's own server, and the answers are compared."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared.routes import ROUTES
from tests.conformance import ADAPTER, EMBEDDER, MARKS, MODEL
from tests.conformance.calls import CHAT_BASE, Call
from tests.conformance.comparing import Told, close_to, told
from tests.conformance.conftest import Urls
from tests.conformance.differences import DIFFERENCES, OF_ONE_PROCESS, Refused
from tests.conformance.other_calls import CALLS

pytestmark = MARKS

OWN = {"/v1/models", "/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel"}
"""Paths that Headrace answers itself."""


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=120) as client:
        yield client


async def answers(http: httpx.AsyncClient, urls: Urls, call: Call) -> list[Told]:
    """Headrace's and vLLM's."""
    headers = {"content-type": call.content_type} if call.content_type else {}
    servers = urls.headrace, urls.vllm_embedder if call.embedder else urls.vllm
    asked = (http.request(call.method, server + call.path, content=call.content, headers=headers) for server in servers)
    return [told(response) for response in await asyncio.gather(*asked)]


@pytest.mark.parametrize("call", [call for call in CALLS if call.name not in DIFFERENCES], ids=lambda call: call.name)
async def test_the_answer_is_that_of_vllms_own_server(http: httpx.AsyncClient, urls: Urls, call: Call) -> None:
    ours, theirs = await answers(http, urls, call)
    assert ours == Told(theirs.status, theirs.kind, close_to(theirs.body))


@pytest.mark.parametrize("call", [call for call in CALLS if call.name in DIFFERENCES], ids=lambda call: call.name)
async def test_the_answer_differs_as_it_is_written_down(http: httpx.AsyncClient, urls: Urls, call: Call) -> None:
    difference = DIFFERENCES[call.name]
    for answer, expected in zip(await answers(http, urls, call), (difference.headrace, difference.vllm), strict=True):
        assert (answer.status if isinstance(expected, int) else refused(answer)) == expected


def refused(answer: Told) -> Refused:
    error: dict[str, Any] = answer.body["error"]
    assert error["message"]
    return Refused(answer.status, error["type"], error.get("code"), error.get("param"))


async def test_every_path_of_vllms_servers_is_served_or_asks_for_no_inference(
    http: httpx.AsyncClient, urls: Urls
) -> None:
    documents = [(await http.get(f"{url}/openapi.json")).json() for url in (urls.vllm, urls.vllm_embedder)]
    paths = {path for document in documents for path in document["paths"]}
    assert paths - OWN - OF_ONE_PROCESS <= set(ROUTES)
    assert {call.path for call in CALLS} >= paths & set(ROUTES)


async def test_every_name_that_vllm_serves_is_listed(http: httpx.AsyncClient, urls: Urls) -> None:
    ours, *theirs = [
        (await http.get(f"{url}/v1/models")).json() for url in (urls.headrace, urls.vllm, urls.vllm_embedder)
    ]
    assert ours["object"] == theirs[0]["object"] == "list"
    assert {model["id"] for model in ours["data"]} == {model["id"] for served in theirs for model in served["data"]}
    assert {model["id"] for model in ours["data"]} == {MODEL, ADAPTER, EMBEDDER}


async def test_an_adapter_gives_other_answers_than_its_model(http: httpx.AsyncClient, headrace: str) -> None:
    made = [
        (await http.post(f"{headrace}/v1/chat/completions", json={**CHAT_BASE, "model": model})).json()
        for model in (MODEL, ADAPTER)
    ]
    assert [answer["model"] for answer in made] == [MODEL, ADAPTER]
    assert made[0]["choices"][0]["message"] != made[1]["choices"][0]["message"]
