"""Calls of the routes that make no tokens, of those that a model may not have, and of those that need no body; and all calls."""

from shared.routes import CHAT, CHATS, COUNT_TOKENS, EMBEDDINGS, SPEECH, TOKENIZE, TRANSCRIPTIONS
from tests.conformance import ADAPTER, EMBEDDER, MODEL
from tests.conformance.calls import CHAT_BASE, COMPLETION_BASE, QUESTION, SPEAKING, STREAMED, Call, of

LAKE = [{"role": "user", "content": "Name a lake."}]
IS_RIVER = {"query": "Is this a river? ", "items": ["Rhine", "Rome"], "label_token_ids": [3681, 787]}
IS_BLUE = {"state": "The sky is blue.", "questions": {"q": {"type": "yes_no", "instructions": "Is it blue?"}}}
OTHER_ROUTES: tuple[Call, ...] = (
    *of(
        CHATS,
        {**CHAT_BASE, "messages": [QUESTION, LAKE]},
        {
            "plain": {},
            "streamed": STREAMED,
            "one conversation, not in a list": {"messages": QUESTION},
            "logprobs": {"logprobs": True},
        },
    ),
    *of("/generative_scoring", {"model": MODEL, **IS_RIVER}, {"plain": {}, "no items": {"items": None}}),
    *of("/v1/systemone", {"model": MODEL, **IS_BLUE}, {"plain": {}, "no questions": {"questions": None}}),
    *of(
        COUNT_TOKENS,
        {"model": MODEL, "messages": QUESTION},
        {
            "plain": {},
            "system": {"system": "Be brief."},
            "no messages": {"messages": None},
            "unknown model": {"model": "no-such-model"},
        },
    ),
    *of(
        TOKENIZE,
        {"model": MODEL},
        {
            "prompt": {"prompt": "The river flows"},
            "messages": {"messages": QUESTION, "add_generation_prompt": True},
            "words": {"prompt": "The river", "return_token_strs": True, "add_special_tokens": False},
            "nothing": {},
            "unknown model": {"prompt": "x", "model": "no-such-model"},
            "adapter": {"prompt": "The river", "model": ADAPTER},
        },
    ),
    *of(
        "/detokenize",
        {"model": MODEL},
        {
            "tokens": {"tokens": [504, 7042]},
            "nothing": {},
            "out of range": {"tokens": [99_999_999]},
            "wrong type": {"tokens": "x"},
        },
    ),
    *of(
        "/invocations",
        {"model": MODEL},
        {
            "chat": CHAT_BASE,
            "chat, streamed": {**CHAT_BASE, **STREAMED},
            "completion": COMPLETION_BASE,
            "neither": {"x": 1},
        },
    ),
)

EMBED = {"model": EMBEDDER}
LONG = "word " * 2000
PAIR = {"text_1": "The river flows", "text_2": ["Water runs", "A car"]}
RANKED = {"query": "water", "documents": ["A car drives", "The river flows", "Rain falls"]}
EMBEDDING: tuple[Call, ...] = (
    *of(
        EMBEDDINGS,
        EMBED,
        {
            "text": {"input": "The river flows"},
            "streamed": {"input": "The river flows", "stream": True},
            "several": {"input": ["The river flows", "A lake"]},
            "token ids": {"input": [504, 7042]},
            "several of token ids": {"input": [[504, 7042], [504]]},
            "base64": {"input": "The river flows", "encoding_format": "base64"},
            "bytes": {"input": "The river flows", "encoding_format": "bytes"},
            "half precision": {"input": "The river flows", "encoding_format": "base64", "embed_dtype": "float16"},
            "messages": {"messages": QUESTION},
            "truncated": {"input": LONG, "truncate_prompt_tokens": 16},
            "user": {"input": "x", "user": "u"},
            "dimensions": {"input": "x", "dimensions": 16},
            "no input": {},
            "empty": {"input": ""},
            "empty list": {"input": []},
            "wrong type": {"input": {"a": 1}},
            "encoding_format unknown": {"input": "x", "encoding_format": "xml"},
            "too long": {"input": LONG},
            "unknown model": {"input": "x", "model": "no-such-model"},
        },
        embedder=True,
    ),
    *of(
        "/v2/embed",
        EMBED,
        {
            "texts": {"texts": ["The river", "A lake"], "input_type": "search_query", "embedding_types": ["float"]},
            "nothing": {},
        },
        embedder=True,
    ),
    *of(
        "/score",
        EMBED,
        {
            "one with several": PAIR,
            "one with one": {"text_1": "a river", "text_2": "a lake"},
            "queries and documents": {"queries": ["a", "b"], "documents": ["c", "d"]},
            "lists that do not fit": {"text_1": ["a", "b", "c"], "text_2": ["d", "e"]},
            "nothing": {},
        },
        embedder=True,
    ),
    *of("/v1/score", EMBED, {"one with several": PAIR}, embedder=True),
    *of(
        "/rerank",
        EMBED,
        {"plain": RANKED, "top_n": {**RANKED, "top_n": 1}, "no query": {"documents": ["x"]}},
        embedder=True,
    ),
    *of("/v1/rerank", EMBED, {"plain": RANKED}, embedder=True),
    *of("/v2/rerank", EMBED, {"plain": RANKED, "top_n negative": {**RANKED, "top_n": -1}}, embedder=True),
    *of(
        "/pooling",
        EMBED,
        {
            "embed": {"input": "The river", "task": "embed"},
            "token_embed": {"input": "The river", "task": "token_embed"},
            "no task": {"input": "The river"},
            "task of another model": {"input": "x", "task": "classify"},
        },
        embedder=True,
    ),
    *of("/classify", EMBED, {"by a model that embeds": {"input": "x"}}, embedder=True),
    *of(
        CHAT,
        {**CHAT_BASE, "model": EMBEDDER},
        {"with a model that embeds": {}, "with a model that embeds, streamed": STREAMED},
        embedder=True,
    ),
    *of(TOKENIZE, EMBED, {"by the model that embeds": {"prompt": "The river"}}, embedder=True),
    *of("/invocations", EMBED, {"embedding": {"input": "The river"}}, embedder=True),
)

FORM = "multipart/form-data; boundary=b"
WAV = (
    f'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n{MODEL}\r\n'
    '--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n'
).encode()
ASKED_OF_NONE = {"model": MODEL, "input": "x", "prompt": "x", "voice": "v", "query": "x", "documents": ["x"]}
NOT_SERVED: tuple[Call, ...] = (
    *(
        Call(name=f"{path} of a model that has none", path=path, body=ASKED_OF_NONE)
        for path in (EMBEDDINGS, "/score", "/rerank", "/pooling", "/classify", "/v1/moderations", SPEECH)
    ),
    Call(name="/v1/images/generations of a model that has none", path="/v1/images/generations", body=ASKED_OF_NONE),
    *(
        Call(name=f"{path} of a model that has none", path=path, body=WAV, content_type=FORM)
        for path in (TRANSCRIPTIONS, "/v1/audio/translations", "/v1/images/edits")
    ),
)
BARE: tuple[Call, ...] = tuple(
    Call(name=named, path=named.partition(" ")[2], method=named.partition(" ")[0], body=b"", content_type=None)
    for named in (
        f"GET {CHAT}", f"PUT {CHAT}", "GET /no/such/route", "POST /v1/models",
        "GET /v1/models", f"GET /v1/models/{MODEL}", "GET /v1/models/no-such-model",
        "GET /v1/responses/resp_none", "POST /v1/responses/resp_none/cancel",
        "GET /health", "GET /version", "GET /ping", "POST /ping", "GET /load",
    )
)  # fmt: skip

CALLS = (*SPEAKING, *OTHER_ROUTES, *EMBEDDING, *NOT_SERVED, *BARE)
