"""What a prompt weighs, and by what beginnings it is known: tasks that share one share what a worker has computed of it.

A digest says "the prompt is the same up to here". Two tasks find one another when they have a cut in common, so cuts lie
where prompts that begin alike are likely to part, in places that do not depend on what follows:
    after the head      the same tools and system messages, another user;
    before the answer   the conversation as the request before this one sent it, so a next turn finds the turn before;
    at the end          what the next turn will look for;
    at fixed lengths    the same document and another question within one message, a system message that ends in a date.
A digest of the first message alone would hold all of a deployment's users for one conversation.
Nothing here judges a body: of one that the engine will refuse, this is a guess like any other.
Routes that make no tokens are only weighed: what they compute is kept for nobody.
"""

from hashlib import blake2b
from itertools import pairwise
from typing import Any

import msgspec
from msgspec import Raw, Struct

from shared.errors import UNDECODABLE
from shared.routes import CHATS, COMPLETIONS, MESSAGES, RESPONSES, ROUTES

BYTES_A_TOKEN = 4
"""Of English text in UTF-8; of most other languages too, where fewer characters make a token but each has more bytes."""
MESSAGE_TOKENS = 4
"""What a chat template adds to a message."""
MEDIA_TOKENS = 600
"""An image or a sound: what models make of a middling one. Its bytes say nothing."""
MOST_TOKENS = 1 << 31
"""No model makes more; what a body says beyond is a number that scripts need not hold."""
SHORTEST = 1024
"""Bytes of text, 16 blocks of KV cache at vLLM's usual 16 tokens: shorter beginnings are computed again in no time."""
LENGTHS = tuple(SHORTEST * 4**n for n in range(6))
"""Fixed cuts. Four apart: at least a quarter of what two prompts share counts, with few digests."""
MOST = 6
"""Digests of a prompt: each is a key to look up at dispatch. The longest are kept, since they save most."""
_SAMPLE = 512
_HEAD = ("system", "developer")
_BESIDE = ("tool_calls", "arguments", "output")
"""What a message says beside its content: calls of tools, and as items of the Responses API these and what came of them."""
_WRITTEN = ("tool_use", "tool_result", "thinking")
"""Parts of content that are text, though not in a field `text`."""


class Prompt(Struct, frozen=True):
    tokens_in: int
    """An estimate."""
    tokens_out: int
    """Most that the body allows, over all its choices; 0: not said."""
    prefix: tuple[str, ...] = ()
    """Digests of the beginnings, the longest first; none for a short prompt."""


class _Body(Struct, gc=False):
    """Whatever the types: a wrong one is the engine's to refuse."""

    model: Any = None
    messages: Any = None
    prompt: Any = None
    instructions: Any = None
    system: Any = None
    input: Any = None
    tools: Raw = Raw(b"")
    cache_salt: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None


class _Inputs(Struct, gc=False):
    """Of routes that make no tokens; the types as above."""

    input: Any = None
    prompt: Any = None
    messages: Any = None
    system: Any = None
    texts: Any = None
    tokens: Any = None
    query: Any = None
    queries: Any = None
    documents: Any = None
    items: Any = None
    text_1: Any = None
    text_2: Any = None
    data_1: Any = None
    data_2: Any = None
    instructions: Any = None
    state: Any = None


_PAIRS = (
    ("query", "documents"),
    ("query", "items"),
    ("queries", "documents"),
    ("queries", "items"),
    ("text_1", "text_2"),
    ("data_1", "data_2"),
)
"""One of the first is read together with each of the second."""


class _Text:
    """The prompt in the order in which a chat template puts it: tools, then the messages."""

    __slots__ = ("ends", "length", "media", "pieces")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.length = self.media = 0
        self.ends: list[int] = []
        """Whole-message boundaries that are worth a cut."""

    def add(self, piece: bytes) -> None:
        self.pieces.append(piece)
        self.length += len(piece)


_decoder = msgspec.json.Decoder(_Body)
_inputs = msgspec.json.Decoder(_Inputs)
_encode = msgspec.json.encode


def look(route: str, body: bytes) -> Prompt:
    """Pure; an odd body gives a rough guess."""
    kind = ROUTES.get(route)
    speaks = kind is None or kind.speaks
    unsaid = 0 if speaks else 1  # 0 would mean an answer of unknown length
    try:
        return _prompt_of(route, body) if speaks else Prompt(min(_weigh(body), MOST_TOKENS), unsaid)
    except RecursionError:  # decoders go a little deeper than what they made can be walked
        return Prompt(len(body) // BYTES_A_TOKEN, unsaid)


def _prompt_of(route: str, body: bytes) -> Prompt:
    """Raises: RecursionError."""
    try:
        said = _decoder.decode(body)
    except UNDECODABLE:
        return Prompt(len(body) // BYTES_A_TOKEN, 0)
    text, count = _Text(), 1
    if route == COMPLETIONS:
        tokens, count = _add_prompts(text, said.prompt)
    elif route == CHATS:
        tokens, count = _add_chats(text, said)
    else:
        tokens = _add_chat(text, said, _messages(route, said))
    tokens += MEDIA_TOKENS * text.media
    prefix = _digests(said, text) if text.length >= SHORTEST else ()
    return Prompt(min(tokens, MOST_TOKENS), _tokens_out(said, count), prefix)


def _tokens_out(said: _Body, prompts: int) -> int:
    for most in (said.max_completion_tokens, said.max_output_tokens, said.max_tokens):
        if isinstance(most, int) and most > 0:
            choices = said.n if isinstance(said.n, int) and said.n > 0 else 1
            return min(most * choices * prompts, MOST_TOKENS)
    return 0


# -- the text, by route


def _add_prompts(text: _Text, prompt: Any) -> tuple[int, int]:
    """Tokens of all prompts, and how many prompts. Only the first one's beginnings count: they are run as requests of their own."""
    prompts = prompt if isinstance(prompt, list) and not _is_ids(prompt) else [prompt]
    tokens = 0
    for number, one in enumerate(prompts):
        ids = _is_ids(one)
        piece = _encode(one) if ids else _bytes(one)
        tokens += len(one) if ids else len(piece) // BYTES_A_TOKEN
        if number == 0:
            text.add(piece)
    return tokens, max(1, len(prompts))


def _add_chats(text: _Text, said: _Body) -> tuple[int, int]:
    """As `_add_prompts`: conversations are run as requests of their own."""
    chats = said.messages if isinstance(said.messages, list) else [said.messages]
    tokens = 0
    for number, chat in enumerate(chats):
        tokens += _add_chat(text if number == 0 else _Text(), said, chat if isinstance(chat, list) else [chat])
    return tokens, max(1, len(chats))


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)


def _messages(route: str, said: _Body) -> list[Any]:
    """The conversation as a chat holds it, whatever the route calls its parts."""
    head, rest = None, said.messages
    if route == RESPONSES:
        head, rest = said.instructions, said.input
        if isinstance(rest, str):
            rest = [{"role": "user", "content": rest}]
    elif route == MESSAGES:
        head = said.system
    messages = rest if isinstance(rest, list) else [rest]
    return messages if head is None else [{"role": "system", "content": head}, *messages]


def _add_chat(text: _Text, said: _Body, messages: list[Any]) -> int:
    tools = bytes(said.tools)
    if tools not in (b"", b"null", b"[]"):
        text.add(tools)  # templates print them as the JSON that they are
    head = True
    before_answer = 0
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if head and role not in _HEAD:
            head = False
            text.ends.append(text.length)
        if role == "assistant":
            before_answer = text.length
        _add_message(text, role, message)
    text.ends += (before_answer, text.length)
    return text.length // BYTES_A_TOKEN + MESSAGE_TOKENS * len(messages)


def _add_message(text: _Text, role: Any, message: Any) -> None:
    text.add(b"\x1e%b\x1f" % _bytes(role))
    fields = message if isinstance(message, dict) else {"content": message}
    content = fields.get("content")
    if isinstance(content, list):
        for part in content:
            _add_part(text, part)
    else:
        text.add(_bytes(content))
    for name in _BESIDE:
        if beside := fields.get(name):
            text.add(_bytes(beside))


def _add_part(text: _Text, part: Any) -> None:
    said = part.get("text") if isinstance(part, dict) else part
    if isinstance(said, str):
        text.add(_bytes(said))
    elif isinstance(part, dict) and part.get("type") in _WRITTEN:
        text.add(_encode(part))
    else:
        text.media += 1
        whole = _encode(part)  # may be megabytes: its size, beginning and end tell it from others
        text.add(blake2b(b"%d %b%b" % (len(whole), whole[:_SAMPLE], whole[-_SAMPLE:]), digest_size=16).digest())


def _bytes(said: Any) -> bytes:
    if isinstance(said, str):
        return said.encode(errors="surrogatepass")
    return b"" if said is None else _encode(said)


# -- the weight of what is not answered with tokens


def _weigh(body: bytes) -> int:
    try:
        said = _inputs.decode(body)
    except msgspec.ValidationError:
        return len(body) // BYTES_A_TOKEN
    except UNDECODABLE:
        return MEDIA_TOKENS  # a form with a file
    tokens = sum(_tokens_of(getattr(said, name)) for name in said.__struct_fields__)
    for one, many in _PAIRS:
        single, several = getattr(said, one), getattr(said, many)
        if isinstance(several, list) and not (isinstance(single, list) and len(single) > 1):
            tokens += _tokens_of(single) * max(0, len(several) - 1)
    return tokens


def _tokens_of(value: Any) -> int:
    if isinstance(value, str):
        return len(_bytes(value)) // BYTES_A_TOKEN
    if _is_ids(value):
        return len(value)
    if isinstance(value, list):
        return sum(map(_tokens_of, value))
    if isinstance(value, dict):
        text = _Text()
        if "content" in value:
            _add_message(text, None, value)
        else:
            _add_part(text, value)
        return text.length // BYTES_A_TOKEN + MEDIA_TOKENS * text.media
    return 0


# -- the digests


def _digests(said: _Body, text: _Text) -> tuple[str, ...]:
    """What else decides about the KV cache begins them all: the model, and the salt that keeps caches apart."""
    whole = memoryview(b"".join(text.pieces))
    cuts = {length for length in LENGTHS if length <= text.length}
    cuts.update(end for end in text.ends if end >= SHORTEST)
    running = blake2b(_encode([said.model, said.cache_salt]), digest_size=6)
    digests = []
    for start, end in pairwise([0, *sorted(cuts)]):
        running.update(whole[start:end])
        digests.append(running.hexdigest())  # leaves it as it is, ready for more
    return tuple(reversed(digests[-MOST:]))
