"""The `openai` package for JavaScript, unmodified: its calls to Headrace and to vLLM's own server, answered alike."""

from pathlib import Path
from typing import Any

import pytest

from tests.conformance import EMBEDDER, MARKS, MODEL
from tests.conformance.comparing import close_to, masked
from tests.support.applications import Answers, calls_in, javascript

pytestmark = MARKS

SOURCE = Path(__file__).parent / "javascript" / "calls.mjs"
OWN_WORDS = {"error: an unknown model": {"code", "class", "message"}}
"""Fields of errors that are Headrace's own: the model is looked up before any engine is asked, and OpenAI's code is told, which
LangChain makes a class of."""


def names(part: str) -> list[str]:
    return calls_in(SOURCE, f"const {part} = {{", "};")


@pytest.fixture(scope="module")
def ours(headrace: str) -> Answers:
    return javascript(SOURCE, "engine", f"{headrace}/v1", MODEL, EMBEDDER)


@pytest.fixture(scope="module")
def theirs(vllm: str, vllm_embedder: str) -> Answers:
    return javascript(SOURCE, "engine", f"{vllm}/v1", MODEL, EMBEDDER, f"{vllm_embedder}/v1")


@pytest.mark.parametrize("name", names("engine"))
def test_a_call_is_answered_as_vllms_own_server_answers_it(ours: Answers, theirs: Answers, name: str) -> None:
    assert seen(name, ours) == close_to(seen(name, theirs))


def seen(name: str, answers: Answers) -> Any:
    answer = answers[name]
    assert ("error" in answer) == name.startswith("error: "), answer
    if "error" in answer:
        return {field: value for field, value in answer["error"].items() if field not in OWN_WORDS.get(name, ())}
    return masked(answer["result"])
