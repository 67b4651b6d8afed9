"""The `openai` package for JavaScript, unmodified, and what vLLM's own server has no answer to: files, batches, kept responses."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance import MODEL
from tests.conformance.comparing import masked
from tests.conformance.test_javascript import SOURCE, names
from tests.support.applications import Answers, javascript
from tests.support.deployment import deployment

pytestmark = pytest.mark.timeout(300)

CONFIG = f"""
[pools.smol]
model = "{MODEL}"
engine = "echo"
[pools.slow]
model = "slow"
engine = "echo"
[pools.slow.echo]
tokens_per_s = 20
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    with deployment(tmp_path_factory.mktemp("javascript"), config=CONFIG) as up:
        yield javascript(SOURCE, "service", f"{up.http}/v1", MODEL, "slow")


def missing(code: str, param: str = "id", type: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"class": "NotFoundError", "status": 404, "code": code, "param": param, "type": type}}


def result(value: Any) -> dict[str, Any]:
    return {"result": value}


UNSERVED = {"error": {"class": "NotFoundError", "status": 404, "code": 404, "param": "route", "type": "NotFoundError"}}
"""The echo engine's own words."""
ENDING = ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"]
WHOLE: dict[str, dict[str, Any]] = {
    "models.retrieve": result(
        {"id": "str", "object": "model", "created": "int", "owned_by": "headrace", "root": MODEL}
    ),
    "models.retrieve of an unknown one": missing("model_not_found", "model", "NotFoundError"),
    "create().withResponse": result(["a b", True]),
    "chat.completions.create twice with one key": result(True),
    "embeddings.create": result({"length": 16, "same": True}),
    "audio.speech.create": result("RIFF"),
    "audio.transcriptions.create": result({"text": "a.wav 70000 bytes"}),
    "audio.translations.create": UNSERVED,
    "images.generate": UNSERVED,
    "images.edit": UNSERVED,
    "moderations.create": UNSERVED,
    "a stream that is aborted": result(2),
    "a call that lasts too long": {"error": {"class": "APIConnectionTimeoutError"}},
    "files.create for no known purpose": {
        "error": {
            "class": "BadRequestError",
            "status": 400,
            "code": "invalid_request",
            "param": "purpose",
            "type": "invalid_request_error",
        }
    },
    "files.retrieve": result("in.jsonl"),
    "files.waitForProcessing": result("processed"),
    "files.list": result(True),
    "files.content": result(True),
    "batches.retrieve until it has ended": result(["completed", 4, 3, 1]),
    "files.content of a batch's output": result([[str(n), str(n)] for n in range(3)]),
    "files.content of a batch's errors": result("invalid_json_line"),
    "batches.list": result(True),
    "batches.cancel": result("cancelled"),
    "batches.create of an unknown file": missing("file_not_found", "input_file_id"),
    "batches.retrieve of an unknown one": missing("batch_not_found", "batch_id"),
    "files.delete": result(True),
    "files.retrieve of a deleted one": missing("file_not_found"),
    "responses.create in the background": result(["response", True]),
    "responses.retrieve until it has ended": result(["completed", "to be or not"]),
    "responses.inputItems.list": result([["user", "to be or not"]]),
    "responses.create behind another": result(["that is", True]),
    "responses.create in the background, streamed": result(4),
    "responses.retrieve behind what was seen": result(
        {"after": 1, "types": ["response.output_text.delta", *ENDING], "text": " be or not"}
    ),
    "responses.stream of one that is known": result({"after": 1, "text": "to be or not"}),
    "responses.cancel": result("cancelled"),
    "responses.delete": result({"id": "str", "object": "response.deleted", "deleted": True}),
    "responses.retrieve of a deleted one": missing("response_not_found", "response_id"),
}
PART: dict[str, dict[str, Any]] = {
    "files.create": {"object": "file", "filename": "in.jsonl", "purpose": "batch", "status": "processed", "lines": 4},
    "batches.create": {
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"job": "17"},
        "output_file_id": None,
    },
}
"""Of what has more fields than matter here."""


def test_every_call_of_the_list_has_its_answer_here() -> None:
    assert {*WHOLE, *PART} == set(names("service"))


@pytest.mark.parametrize("name", WHOLE)
def test_a_call_is_answered_as_the_client_expects(answers: Answers, name: str) -> None:
    assert masked(answers[name]) == WHOLE[name]


@pytest.mark.parametrize("name", PART)
def test_a_call_is_answered_with_what_the_client_expects(answers: Answers, name: str) -> None:
    told = answers[name]["result"]
    assert {field: told[field] for field in PART[name]} == PART[name]
