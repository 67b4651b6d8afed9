"""What a prompt weighs, and which prompts are taken for alike."""

import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.prefix import LENGTHS, MEDIA_TOKENS, MOST, MOST_TOKENS, SHORTEST, Prompt, look
from shared.routes import CHAT, CHATS, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, ROUTES, TRANSCRIPTIONS

Message = dict[str, Any]
LONG = "The mill turns while the river runs. " * 60
"""2,220 bytes."""


def chat(*messages: Message, **more: Any) -> Prompt:
    return look(CHAT, msgspec.json.encode({"model": "m", "messages": messages, **more}))


def completion(prompt: Any, **more: Any) -> Prompt:
    return look(COMPLETIONS, msgspec.json.encode({"model": "m", "prompt": prompt, **more}))


def said(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def shared(one: Prompt, other: Prompt) -> set[str]:
    return set(one.prefix) & set(other.prefix)


# -- which prompts begin alike


def test_a_short_prompt_has_no_digests() -> None:
    assert chat(said("system", "Be kind."), said("user", "Hello?")).prefix == ()
    assert completion("x" * (SHORTEST - 1)).prefix == ()
    assert completion("x" * SHORTEST).prefix != ()


def test_the_same_system_message_is_shared_by_different_users() -> None:
    ann, bob = (chat(said("system", LONG), said("user", text)) for text in ("I am Ann.", "What is a sluice?" * 9))
    assert len(shared(ann, bob)) == 2  # the fixed length, and the end of the system message
    assert ann.prefix[0] not in bob.prefix


def test_the_same_tools_are_shared_and_stand_before_the_messages() -> None:
    tools = [{"type": "function", "function": {"name": "sluice", "description": LONG}}]
    ann, bob = (chat(said("user", text), tools=tools) for text in ("Open it.", "Close it."))
    assert shared(ann, bob)
    assert not shared(ann, chat(said("user", "Open it."), tools=[*tools, {"type": "function"}])) - {ann.prefix[-1]}


def test_a_next_turn_finds_the_whole_turn_before() -> None:
    first = chat(said("user", LONG))
    second = chat(said("user", LONG), said("assistant", "It turns."), said("user", "Why?"))
    third = chat(
        *(said("user", LONG), said("assistant", "It turns."), said("user", "Why?")),
        *(said("assistant", "Water."), said("user", "And in winter?")),
    )
    assert first.prefix[0] in second.prefix
    assert second.prefix[0] in third.prefix


def test_a_turn_of_tool_calls_finds_the_turn_before() -> None:
    begun = [said("system", "Run the mill."), said("user", LONG)]
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
    }
    first = chat(*begun)
    second = chat(*begun, call, {"role": "tool", "tool_call_id": "c", "content": "done"})
    other = chat(*begun, {**call, "tool_calls": []}, {"role": "tool", "tool_call_id": "c", "content": "done"})
    assert first.prefix[0] in second.prefix
    assert second.prefix[0] not in other.prefix


def test_the_same_first_message_does_not_make_two_conversations_one() -> None:
    """A digest of the first message alone sent everybody with the usual system message to one worker."""
    ann, bob = (chat(said("system", LONG), said("user", name * 800)) for name in ("Ann ", "Bob "))
    assert shared(ann, bob)
    assert ann.prefix[0] != bob.prefix[0]
    assert {ann.prefix.index(digest) for digest in shared(ann, bob)} == {len(ann.prefix) - 1, len(ann.prefix) - 2}


def test_one_document_and_two_questions_in_one_message_share_the_document() -> None:
    assert len(shared(completion(LONG * 4 + "Who?"), completion(LONG * 4 + "When, and why?"))) == 2  # 1 KiB, 4 KiB


@pytest.mark.parametrize("differing", [{"model": "other"}, {"cache_salt": "mine"}])
def test_what_keeps_kv_caches_apart_keeps_digests_apart(differing: dict[str, str]) -> None:
    assert not shared(chat(said("user", LONG)), chat(said("user", LONG), **differing))


def test_text_parts_are_the_text_that_they_hold() -> None:
    assert chat(said("user", [{"type": "text", "text": LONG}])) == chat(said("user", LONG))


def test_another_image_is_another_beginning() -> None:
    def asked(data: str) -> Prompt:
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        return chat(said("user", [image, {"type": "text", "text": LONG}]))

    assert asked("AAAA" * 1000) == asked("AAAA" * 1000)
    assert not shared(asked("AAAA" * 1000), asked("AAAB" * 1000))
    assert not shared(asked("AAAA" * 1000), asked("AAAA" * 1001))


@given(beginning=st.text(), one=st.text(), other=st.text())
def test_prompts_share_every_fixed_cut_within_what_they_share_and_none_beyond(
    beginning: str, one: str, other: str
) -> None:
    beginning = (beginning + "mill") * 400
    length = len(beginning.encode())
    a, b = completion(beginning + "A" + one * 900), completion(beginning + "B" + other * 900)
    assert len(shared(a, b)) == min(sum(cut <= length for cut in LENGTHS), MOST)


words = st.text(max_size=40).map(lambda text: text * 30)
turns = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), words), min_size=1, max_size=8)


@given(turns=turns, answer=words, question=words)
def test_a_conversation_and_the_same_with_one_more_turn_always_meet(
    turns: list[tuple[str, str]], answer: str, question: str
) -> None:
    begun = [said(role, text) for role, text in turns]
    before, after = chat(*begun), chat(*begun, said("assistant", answer), said("user", question))
    if before.prefix:
        assert before.prefix[0] in after.prefix


@given(turns=turns)
def test_digests_are_few_short_different_and_the_same_each_time(turns: list[tuple[str, str]]) -> None:
    messages = [said(role, text) for role, text in turns]
    prompt = chat(*messages)
    assert len(set(prompt.prefix)) == len(prompt.prefix) <= MOST
    assert all(len(digest) == 12 for digest in prompt.prefix)
    assert chat(*messages) == prompt


# -- what it weighs


def test_tokens_in_counts_text_and_not_json() -> None:
    assert completion("four" * 100).tokens_in == 100
    assert completion('"\n' * 200).tokens_in == 100
    assert 100 <= chat(said("user", "four" * 100)).tokens_in < 110


def test_token_ids_are_counted_one_by_one() -> None:
    assert completion([700, 7, 70000]).tokens_in == 3
    assert completion([[700, 7], [1]], max_tokens=5) == Prompt(3, 10)
    assert completion(["four" * 5, "four" * 6], max_tokens=5) == Prompt(11, 10)


def test_an_image_weighs_the_same_however_large_its_file() -> None:
    def asked(size: int) -> int:
        return chat(said("user", [{"type": "image_url", "image_url": {"url": "x" * size}}])).tokens_in

    assert MEDIA_TOKENS < asked(10) == asked(100_000) < MEDIA_TOKENS + 50


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 0),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 7),
        ({"max_output_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 8}, 8),  # as vLLM takes them
        ({"max_tokens": 7, "n": 3}, 21),
        ({"max_tokens": None, "n": 3}, 0),
        ({"max_tokens": "7"}, 0),
        ({"max_tokens": -7}, 0),
        ({"max_tokens": 7, "n": "3"}, 7),
        ({"max_tokens": 10**12}, MOST_TOKENS),
    ],
)
def test_tokens_out_is_what_the_body_allows(fields: dict[str, Any], tokens: int) -> None:
    assert chat(said("user", "Hello?"), **fields).tokens_out == tokens


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("model", "messages", "prompt", "tools", "cache_salt", "max_tokens", "max_completion_tokens", "n")
message = json | st.fixed_dictionaries({}, optional={"role": json, "content": json, "tool_calls": json})
bodies = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, json) | {"messages": st.lists(message) | json})


def test_several_conversations_weigh_as_many_requests_that_begin_as_the_first_one() -> None:
    messages = [[said("user", LONG)], [said("user", "short")]]
    found = look(CHATS, msgspec.json.encode({"model": "m", "messages": messages, "max_tokens": 8}))
    one, other = (chat(*conversation, max_tokens=8) for conversation in messages)
    assert (found.tokens_in, found.tokens_out) == (one.tokens_in + other.tokens_in, 16)
    assert found.prefix == one.prefix


@given(route=st.sampled_from([CHAT, COMPLETIONS]), body=bodies, pad=st.booleans())
def test_an_odd_body_is_a_guess_and_never_an_error(route: str, body: dict[str, Any], pad: bool) -> None:
    if pad:
        body["tools"] = "x" * SHORTEST
    prompt = look(route, msgspec.json.encode(body))
    assert 0 <= prompt.tokens_in <= MOST_TOKENS
    assert 0 <= prompt.tokens_out <= MOST_TOKENS


@given(route=st.sampled_from([CHAT, COMPLETIONS]), body=st.binary())
def test_what_is_no_json_is_a_guess_and_never_an_error(route: str, body: bytes) -> None:
    assert look(route, body).tokens_in <= len(body)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"messages": ' + b"[" * 100_000, b'{"prompt":"\\ud800"}', b'{"prompt":"\xff"}', b'{"n":1e999}'],
)
def test_these_bodies_are_no_error_either(body: bytes) -> None:
    for route in (CHAT, COMPLETIONS):
        assert look(route, body).prefix == ()


def test_numbers_beyond_64_bits_are_no_error() -> None:
    for route in (CHAT, COMPLETIONS):
        look(route, b'{"prompt":[%b],"messages":[{"content":%b}],"max_tokens":%b}' % ((b"9" * 400,) * 3))


# -- other routes


def weigh(route: str, **body: Any) -> int:
    return look(route, msgspec.json.encode(body)).tokens_in


def test_a_response_and_a_message_are_known_by_the_same_beginnings_as_a_chat() -> None:
    turns = [{"role": "user", "content": LONG}]
    made = look(CHAT, msgspec.json.encode({"model": "m", "messages": [{"role": "system", "content": LONG}, *turns]}))
    response = look(RESPONSES, msgspec.json.encode({"model": "m", "instructions": LONG, "input": turns}))
    short = look(RESPONSES, msgspec.json.encode({"model": "m", "instructions": LONG, "input": LONG}))
    message = look(MESSAGES, msgspec.json.encode({"model": "m", "system": LONG, "messages": turns, "max_tokens": 7}))
    assert made.prefix == response.prefix == short.prefix == message.prefix != ()
    assert made.tokens_in == response.tokens_in == message.tokens_in
    assert message.tokens_out == 7


def test_calls_of_tools_and_what_came_of_them_have_weight() -> None:
    items = [
        {"type": "function_call", "name": "f", "arguments": LONG},
        {"type": "function_call_output", "output": LONG},
    ]
    assert weigh(RESPONSES, input=items) > 1100
    parts = [{"type": "tool_result", "tool_use_id": "t", "content": LONG}]
    assert weigh(MESSAGES, messages=[{"role": "user", "content": parts}]) > 550


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        ({"input": "x" * 40}, 10),
        ({"input": ["x" * 40, "y" * 40]}, 20),
        ({"input": [1, 2, 3]}, 3),
        ({"input": [[1, 2, 3], [4]]}, 4),
        ({"query": "q" * 40, "documents": ["d" * 40] * 3}, 60),
        ({"text_1": "q" * 40, "text_2": ["d" * 40] * 3}, 60),
        ({"queries": ["q" * 40] * 3, "documents": ["d" * 40] * 3}, 60),
        ({"messages": [{"role": "user", "content": "x" * 34}]}, 9),
        ({"input": 7, "query": None}, 0),
        ({}, 0),
    ],
)
def test_what_makes_no_tokens_is_weighed_by_its_text(asked: dict[str, Any], tokens: int) -> None:
    made = look(EMBEDDINGS, msgspec.json.encode({"model": "m", **asked}))
    assert (made.tokens_in, made.tokens_out, made.prefix) == (tokens, 1, ())


def test_a_form_is_weighed_as_one_sound() -> None:
    assert look(TRANSCRIPTIONS, b"--x\r\n\xff").tokens_in == MEDIA_TOKENS


@given(route=st.sampled_from(list(ROUTES)), body=st.one_of(bodies, st.binary()))
def test_no_body_of_any_route_is_too_odd_to_look_at(route: str, body: Any) -> None:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    assert look(route, data).tokens_in >= 0


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, MESSAGES, EMBEDDINGS])
def test_no_depth_is_too_deep_to_look_at(route: str) -> None:
    """What is decoded just so cannot be walked any more."""
    for field in (b"input", b"messages", b"prompt", b"cache_salt"):
        for depth in range(sys.getrecursionlimit() - 250, sys.getrecursionlimit()):
            nested = b"[" * depth + b'"x"' + b"]" * depth
            body = b'{"instructions":"","system":"%b","%b":%b}' % (LONG.encode(), field, nested)
            assert look(route, body).tokens_in >= 0
