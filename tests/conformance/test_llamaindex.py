"""LlamaIndex, unmodified and told no more than where the server is: answers like those of vLLM's own server."""

from pathlib import Path

import pytest

from tests.conformance import EMBEDDER, MARKS, MODEL
from tests.conformance.comparing import close_to
from tests.conformance.test_javascript import seen
from tests.support.applications import Answers, calls_in, python

pytestmark = MARKS

SOURCE = Path(__file__).parent / "frameworks" / "llamaindex_calls.py"


@pytest.fixture(scope="module")
def ours(headrace: str) -> Answers:
    return python(SOURCE, headrace, MODEL, headrace, EMBEDDER)


@pytest.fixture(scope="module")
def theirs(vllm: str, vllm_embedder: str) -> Answers:
    return python(SOURCE, vllm, MODEL, vllm_embedder, EMBEDDER)


@pytest.mark.parametrize("name", calls_in(SOURCE, "    return {", "    }"))
def test_a_call_is_answered_as_vllms_own_server_answers_it(ours: Answers, theirs: Answers, name: str) -> None:
    assert seen(name, ours) == close_to(seen(name, theirs))


def test_nothing_beyond_this_machine_was_asked(ours: Answers) -> None:
    assert ours["elsewhere"]["result"] == []
