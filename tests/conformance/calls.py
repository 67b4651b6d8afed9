"""Calls of the routes that make tokens, as a client may send them: with every option, and wrongly."""

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from shared.routes import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from tests.conformance import ADAPTER, MODEL

JSON = "application/json"


class Call(Struct, frozen=True, kw_only=True):
    name: str
    path: str
    body: Any = None
    """JSON, or bytes as they are."""
    method: str = "POST"
    content_type: str | None = JSON
    embedder: bool = False
    """vLLM's server of EMBEDDER is asked."""

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


RIVERS = "Name three rivers of Europe, and say one thing of each."
QUESTION = [{"role": "user", "content": RIVERS}]
RIVER = {"type": "object", "properties": {"name": {"enum": ["Rhine", "Seine"]}}, "required": ["name"]}
WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}
TOOLS = [{"type": "function", "function": WEATHER}]
NAMED = {"type": "function", "function": {"name": "weather"}}
USED = [
    {"role": "user", "content": "How is the weather in Paris?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
]
PIXEL = "data:image/png;base64," + base64.b64encode(b"no image").decode()


Fields = Mapping[str, Any]


def of(path: str, base: Fields, asked: Mapping[str, Fields], **more: Any) -> Iterator[Call]:
    for name, fields in asked.items():
        yield Call(name=f"{path} {name}", path=path, body={**base, **fields}, **more)


def both(path: str, base: Fields, asked: Mapping[str, Fields], stream: Fields) -> Iterator[Call]:
    """Whole, and with the fields of `stream`."""
    yield from of(path, base, asked)
    yield from of(path, {**base, **stream}, {f"{name}, streamed": fields for name, fields in asked.items()})


STREAMED = {"stream": True}
COUNTED = {"stream": True, "stream_options": {"include_usage": True}}

CHAT_BASE = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 8}
CHATS_BOTH: dict[str, Fields] = {
    "plain": {},
    "to its end": {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 48},
    "stop": {"stop": [".", ":"]},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "two choices, sampled": {"n": 2, "temperature": 0.8, "seed": 7},
    "json_schema": {
        "max_tokens": 40,
        "response_format": {"type": "json_schema", "json_schema": {"name": "river", "schema": RIVER}},
    },
    "regex": {"structured_outputs": {"regex": "(Rhine|Seine), [0-9]{3} km"}},
    "tools, none called": {"tools": TOOLS},
    "tool_choice required": {"tools": TOOLS, "tool_choice": "required", "max_tokens": 64},
    "tool_choice named": {"tools": TOOLS, "tool_choice": NAMED, "max_tokens": 40},
    "what tools brought": {"messages": USED, "tools": TOOLS, "parallel_tool_calls": False},
    "reasoning": {
        "reasoning_effort": "low",
        "include_reasoning": True,
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "continue_final_message": {
        "messages": [*QUESTION, {"role": "assistant", "content": "The first river"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
    "echo": {
        "messages": [*QUESTION, {"role": "assistant", "content": "The first river"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
        "echo": True,
    },
    "return_token_ids": {"return_token_ids": True},
    "adapter": {"model": ADAPTER},
}
"""Whole and streamed."""
CHATS_WHOLE: dict[str, Fields] = {
    "system and parts": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Name"}, {"type": "text", "text": "a river."}]},
        ]
    },
    "several turns": {
        "messages": [*QUESTION, {"role": "assistant", "content": "The Rhine."}, {"role": "user", "content": "More."}]
    },
    "max_completion_tokens": {"max_tokens": None, "max_completion_tokens": 5},
    "stop, told": {"stop": ".", "include_stop_str_in_output": True},
    "stop_token_ids": {"stop_token_ids": [28, 30]},
    "sampled by a seed": {"temperature": 1.2, "seed": 3, "top_p": 0.9, "top_k": 20, "min_p": 0.05},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    "logit_bias": {"logit_bias": {"504": 5, "28": -100}},
    "allowed_token_ids": {"allowed_token_ids": [504, 198, 253]},
    "bad_words": {"bad_words": ["Here", "rivers"]},
    "min_tokens and ignore_eos": {"ignore_eos": True, "min_tokens": 12},
    "json_object": {"response_format": {"type": "json_object"}},
    "response_format text": {"response_format": {"type": "text"}},
    "choice": {"structured_outputs": {"choice": ["Rhine", "Seine"]}},
    "grammar": {"structured_outputs": {"grammar": 'root ::= "Rhine" | "Seine"'}},
    "structural json": {"structured_outputs": {"json": RIVER}, "max_tokens": 40},
    "tool_choice auto": {"tools": TOOLS, "tool_choice": "auto"},
    "tool_choice none": {"tools": TOOLS, "tool_choice": "none"},
    "return_tokens_as_token_ids": {"logprobs": True, "return_tokens_as_token_ids": True},
    "truncate_prompt_tokens": {"truncate_prompt_tokens": 8},
    "fields of OpenAI that it may not know": {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
    },
    "unknown field": {"no_such_field": 1},
    "request_id and priority": {"request_id": "mine", "priority": 3, "cache_salt": "salt"},
    "prompt_logprobs": {"prompt_logprobs": 1, "max_tokens": 2},
    "beam search": {"use_beam_search": True, "n": 2},
    "stream false": {"stream": False},
    "stream null": {"stream": None},
}
CHATS_STREAMED: dict[str, Fields] = {
    "stream": {},
    "include_usage": COUNTED,
    "continuous usage": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "null stream_options": {"stream_options": None},
}
CHAT_FAULTS: dict[str, Fields] = {
    "prompt too long": {"messages": [{"role": "user", "content": "word " * 2000}]},
    "more tokens than fit": {"max_tokens": 5000},
    "wrong type": {"temperature": "hot"},
    "negative temperature": {"temperature": -1},
    "messages null": {"messages": None},
    "messages empty": {"messages": []},
    "messages a string": {"messages": "hello"},
    "unknown role": {"messages": [{"role": "bard", "content": "hello"}]},
    "message without role": {"messages": [{"content": "hello"}]},
    "image for a model that has no eyes": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}]
    },
    "part of unknown type": {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
    "n zero": {"n": 0},
    "top_p too large": {"top_p": 2},
    "top_logprobs without logprobs": {"top_logprobs": 2},
    "too many logprobs": {"logprobs": True, "top_logprobs": 10_000},
    "logit_bias out of range": {"logit_bias": {"9999999": 1}},
    "logit_bias of words": {"logit_bias": {"river": 1}},
    "schema that is none": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}}
    },
    "json_schema without a schema": {"response_format": {"type": "json_schema"}},
    "response_format unknown": {"response_format": {"type": "yaml"}},
    "regex that is none": {"structured_outputs": {"regex": "(("}},
    "grammar that is none": {"structured_outputs": {"grammar": "root ="}},
    "choice of nothing": {"structured_outputs": {"choice": []}},
    "tool_choice without tools": {"tool_choice": "required"},
    "tool_choice of an unknown tool": {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
    "tool without a name": {"tools": [{"type": "function", "function": {}}]},
    "chat_template of the client": {"chat_template": "{{ messages }}"},
    "echo and generation prompt": {"continue_final_message": True, "add_generation_prompt": True},
    "unknown model": {"model": "no-such-model"},
}
ODD_BODIES: dict[str, Any] = {
    "stream_options without stream": {**CHAT_BASE, "stream_options": {"include_usage": True}},
    "model not a string": {**CHAT_BASE, "model": 5},
    "model null": {**CHAT_BASE, "model": None},
    "no model": {"messages": QUESTION, "max_tokens": 4, "temperature": 0},
    "stream in words": {**CHAT_BASE, "stream": "yes"},
    "broken JSON": b'{"model": "x", "messages": [',
    "no body": b"",
    "not an object": [1, 2],
    "null": None,
    "not UTF-8": b'{"model": "\xff"}',
    "nested too deep": b'{"model":"%b","messages":%b%b}' % (MODEL.encode(), b"[" * 5000, b"]" * 5000),
    "key twice": json.dumps(CHAT_BASE)[:-1].encode() + b', "max_tokens": 3}',
    "NaN": json.dumps({**CHAT_BASE, "temperature": float("nan")}).encode(),
}
KINDS: dict[str, str | None] = {
    "plain text": "text/plain",
    "charset of the content type": "application/json; charset=utf-8",
    "no content type": None,
}
CHAT_ODD: tuple[Call, ...] = (
    *(Call(name=f"{CHAT} {name}", path=CHAT, body=body) for name, body in ODD_BODIES.items()),
    *(Call(name=f"{CHAT} {name}", path=CHAT, body=CHAT_BASE, content_type=kind) for name, kind in KINDS.items()),
    Call(name=f"{CHAT} form", path=CHAT, body=b"model=x", content_type="application/x-www-form-urlencoded"),
)

COMPLETION_BASE = {"model": MODEL, "prompt": "The river flows", "temperature": 0, "max_tokens": 8}
COMPLETIONS_BOTH: dict[str, Fields] = {
    "plain": {},
    "several prompts": {"prompt": ["The river", "A lake is"]},
    "token ids": {"prompt": [504, 7042, 13063]},
    "several prompts of token ids": {"prompt": [[504, 7042], [504, 13063]]},
    "echo": {"echo": True},
    "echo and logprobs": {"echo": True, "logprobs": 1, "max_tokens": 1},
    "logprobs": {"logprobs": 2},
    "two choices, sampled": {"n": 2, "temperature": 0.9, "seed": 1},
    "stop": {"stop": ["\n", " into"]},
    "json": {"response_format": {"type": "json_object"}},
    "return_token_ids": {"return_token_ids": True},
    "adapter": {"model": ADAPTER},
}
COMPLETIONS_WHOLE: dict[str, Fields] = {
    "max_tokens 0": {"max_tokens": 0, "echo": True},
    "beam search": {"use_beam_search": True, "n": 2},
    "prompt_logprobs": {"prompt_logprobs": 1, "max_tokens": 1},
    "best_of": {"best_of": 2},
    "suffix": {"suffix": " end."},
    "no prompt": {"prompt": None},
    "empty prompt": {"prompt": ""},
    "empty list": {"prompt": []},
    "token id out of range": {"prompt": [99_999_999]},
    "prompt_embeds": {"prompt": None, "prompt_embeds": "AAAA"},
    "prompt too long": {"prompt": "word " * 2000},
    "wrong type": {"prompt": {"a": 1}},
    "unknown model": {"model": "no-such-model"},
}

RESPONSE_BASE = {"model": MODEL, "input": "Name a river.", "temperature": 0, "max_output_tokens": 12}
RESPONSES_BOTH: dict[str, Fields] = {
    "plain": {},
    "to its end": {"input": "Say hello.", "max_output_tokens": 48},
    "items and instructions": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Name a river."}]}],
        "instructions": "Be brief.",
    },
    "json_schema": {
        "max_output_tokens": 40,
        "text": {"format": {"type": "json_schema", "name": "river", "schema": RIVER}},
    },
    "logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 1},
    "tools": {"tools": [{"type": "function", **WEATHER}]},
    "tool_choice required": {
        "tools": [{"type": "function", **WEATHER}],
        "tool_choice": "required",
        "max_output_tokens": 64,
    },
    "what tools brought": {
        "input": [
            {"role": "user", "content": "How is the weather in Paris?"},
            {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Paris"}'},
            {"type": "function_call_output", "call_id": "call_1", "output": "Rain."},
        ]
    },
    "metadata, user, not stored": {"metadata": {"a": "b"}, "user": "u", "store": False},
    "reasoning": {"reasoning": {"effort": "low"}},
    "adapter": {"model": ADAPTER},
}
RESPONSES_WHOLE: dict[str, Fields] = {
    "no input": {"input": None},
    "wrong type": {"temperature": "hot"},
    "unknown model": {"model": "no-such-model"},
    "prompt too long": {"input": "word " * 2000},
    "previous response unknown": {"previous_response_id": "resp_none"},
    "background": {"background": True},
    "tool unknown": {"tools": [{"type": "teleport"}]},
}

MESSAGE_BASE = {"model": MODEL, "max_tokens": 12, "temperature": 0, "messages": QUESTION}
ANTHROPIC_TOOL = {"name": "weather", "description": "Weather.", "input_schema": WEATHER["parameters"]}
MESSAGES_BOTH: dict[str, Fields] = {
    "plain": {},
    "to its end": {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 48},
    "system": {"system": [{"type": "text", "text": "Be brief."}]},
    "stop_sequences": {"stop_sequences": ["."]},
    "tools": {"tools": [ANTHROPIC_TOOL], "tool_choice": {"type": "any"}, "max_tokens": 64},
    "what tools brought": {
        "messages": [
            {"role": "user", "content": "How is the weather in Paris?"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "Rain."}]},
        ],
        "tools": [ANTHROPIC_TOOL],
    },
    "adapter": {"model": ADAPTER},
}
MESSAGES_WHOLE: dict[str, Fields] = {
    "no max_tokens": {"max_tokens": None},
    "messages empty": {"messages": []},
    "unknown model": {"model": "no-such-model"},
    "prompt too long": {"messages": [{"role": "user", "content": "word " * 2000}]},
    "thinking": {"thinking": {"type": "enabled", "budget_tokens": 4}},
}

SPEAKING: tuple[Call, ...] = (
    *both(CHAT, CHAT_BASE, CHATS_BOTH, COUNTED),
    *of(CHAT, CHAT_BASE, CHATS_WHOLE),
    *of(CHAT, {**CHAT_BASE, **STREAMED}, CHATS_STREAMED),
    *of(CHAT, CHAT_BASE, CHAT_FAULTS),
    *of(
        CHAT,
        {**CHAT_BASE, **STREAMED},
        {
            f"{n}, streamed": CHAT_FAULTS[n]
            for n in (
                "prompt too long",
                "wrong type",
                "negative temperature",
                "unknown model",
                "regex that is none",
                "messages empty",
            )
        },
    ),
    *CHAT_ODD,
    *both(COMPLETIONS, COMPLETION_BASE, COMPLETIONS_BOTH, COUNTED),
    *of(COMPLETIONS, COMPLETION_BASE, COMPLETIONS_WHOLE),
    *both(RESPONSES, RESPONSE_BASE, RESPONSES_BOTH, STREAMED),
    *of(RESPONSES, RESPONSE_BASE, RESPONSES_WHOLE),
    *both(MESSAGES, MESSAGE_BASE, MESSAGES_BOTH, STREAMED),
    *of(MESSAGES, MESSAGE_BASE, MESSAGES_WHOLE),
    Call(name=f"{MESSAGES} broken JSON", path=MESSAGES, body=b"{"),
    Call(name=f"{RESPONSES} broken JSON", path=RESPONSES, body=b"{"),
)
