"""What a door takes in, made into a task: one set of rules for HTTP and for the stream, so both refuse alike.

Three shapes: the envelope (`POST /v1/tasks`), the shorthand (flat, `input_text`), and a plain body of the OpenAI API.
The body itself is never changed: only `model` and `stream` are read from it.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import msgspec
from msgspec import Raw, Struct

from shared.config import Config
from shared.errors import BodyTooLarge, InvalidRequest, ModelNotFound
from shared.lifecycle import LANE_WORDS, Lane
from shared.messages import NULL, Task

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ROUTES = (CHAT, COMPLETIONS)
"""Paths of the OpenAI API that a task may ask for."""
DEFAULT_TENANT = "default"
TEMPLATES = ("default",)
"""`default`: the text is the user's message."""
NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,128}")
"""What may become part of a key: sessions, reply streams, producers' ids."""


class CacheKey(Struct, frozen=True):
    digest: str
    """Of all that decides the answer, and of the tenant unless it is shared."""
    ttl_s: int
    refresh: bool = False
    """Run it, and keep the new answer."""


class Request(Struct, frozen=True, kw_only=True):
    """A valid request: its task, its body, and the pool that serves its model."""

    task: Task
    body: bytes
    pool: str
    fingerprint: bytes = b""
    """The body as it came, should an alias or a template have changed it: what makes a repeat the same."""
    tokens_in: int = 0
    """Of the prompt, an estimate."""
    tokens_out: int = 0
    """Most that it may make; 0: not said."""
    prefix: tuple[str, ...] = ()
    """Digests of the prompt's beginnings, the longest first: tasks that share one share KV cache."""
    cache: CacheKey | None = None
    fallbacks: tuple["Request", ...] = ()
    """The same for other pools, in turn, should this one accept nothing more."""
    shadow: "Request | None" = None
    """To be submitted beside it, when it was accepted."""


class Peek(Struct):
    """The two fields of a body that decide where it goes; everything else is the engine's."""

    model: str
    stream: bool | None = False


class Envelope(Struct, frozen=True, forbid_unknown_fields=True):
    body: Raw
    route: str = CHAT
    lane: str = "normal"
    priority: str | None = None
    session: str = ""
    user: str = ""
    task_id: str = ""
    reply_to: str = ""
    expires_in: float | None = None
    metadata: dict[str, Any] | None = None


class Shorthand(Struct, frozen=True, forbid_unknown_fields=True):
    input_text: str
    model: str = ""
    task_id: str = ""
    user_id: str = ""
    template_id: str | None = None
    priority: str | None = None
    lane: str = "normal"
    session: str = ""
    reply_to: str = ""
    expires_in: float | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    context: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


_peek = msgspec.json.Decoder(Peek)
_envelope = msgspec.json.Decoder(Envelope)
_shorthand = msgspec.json.Decoder(Shorthand)
_object = msgspec.json.Decoder(dict[str, Raw])


def from_openai(config: Config, route: str, body: bytes, *, task_id: str = "", attached: bool = False) -> Request:
    """A body of the OpenAI API, sent to its own route. Raises: RequestError."""
    check_size(config, body)
    peek = _decode(_peek, body, Peek)
    pool = pool_of(config, peek.model)
    task = Task(
        route=route,
        model=peek.model,
        tenant=DEFAULT_TENANT,
        lane=Lane.INTERACTIVE,
        streamed=bool(peek.stream),
        task_id=check_name("task_id", task_id),
        attached=attached,
    )
    return Request(task=task, body=body, pool=pool)


def from_json(config: Config, data: bytes) -> Request:
    """The JSON of `POST /v1/tasks` and of the stream door's field `task`. Raises: RequestError."""
    check_size(config, data)
    if "input_text" in _decode(_object, data, Envelope):
        return _from_shorthand(config, _decode(_shorthand, data, Shorthand))
    return _from_envelope(config, _decode(_envelope, data, Envelope))


def from_fields(config: Config, fields: Mapping[str, str]) -> Request:
    """The flat fields of an entry of the stream door. Raises: RequestError."""
    data: dict[str, Any] = dict(fields)
    for name in ("context", "metadata"):
        if name in data:
            data[name] = _decode(msgspec.json.Decoder(dict[str, Any]), fields[name].encode(), None, prefix=name)
    check_size(config, msgspec.json.encode(data))
    if "input_text" not in data:
        raise InvalidRequest("The entry has neither a field `task` (JSON) nor a field `input_text`.", param="task")
    try:
        return _from_shorthand(config, msgspec.convert(data, Shorthand, strict=False))
    except msgspec.ValidationError as error:
        raise _explain(error, Shorthand) from None


def check_size(config: Config, body: bytes) -> None:
    if len(body) > config.limits.body_bytes:
        raise BodyTooLarge(config.limits.body_bytes)


def check_name(field: str, value: str) -> str:
    """Names become parts of keys. Raises: InvalidRequest."""
    if value and not NAME.fullmatch(value):
        raise InvalidRequest(
            f"`{field}` is {value[:80]!r}; allowed are 1 to 128 letters, digits and the signs _ . : @ -", param=field
        )
    return value


def pool_of(config: Config, model: str) -> str:
    for name, pool in config.pools.items():
        if pool.model == model:
            return name
    raise ModelNotFound(model, [pool.model for pool in config.pools.values()])


def lane_of(lane: str, priority: str | None) -> Lane:
    word, field = (lane, "lane") if priority is None else (priority, "priority")
    if word not in LANE_WORDS:
        raise InvalidRequest(f"`{field}` is {word[:80]!r}; allowed: {', '.join(LANE_WORDS)}", param=field)
    return LANE_WORDS[word]


def expiry_of(config: Config, expires_in: float | None) -> float:
    """Seconds; 0: as long as the deployment allows. Raises: InvalidRequest."""
    limit = config.limits.waiting_s
    if expires_in is None:
        return 0.0
    if not 0 < expires_in <= limit:  # not-a-number, which a flat field can say, is refused too
        raise InvalidRequest(
            f"`expires_in` is {expires_in}; allowed: above 0, at most {limit} seconds (limits.waiting_s)",
            param="expires_in",
        )
    return expires_in


def _from_envelope(config: Config, envelope: Envelope) -> Request:
    if envelope.route not in ROUTES:
        raise InvalidRequest(f"`route` is {envelope.route[:80]!r}; allowed: {', '.join(ROUTES)}", param="route")
    body = bytes(envelope.body)
    peek = _decode(_peek, body, Peek, prefix="body")
    task = Task(
        route=envelope.route,
        model=peek.model,
        tenant=DEFAULT_TENANT,
        lane=lane_of(envelope.lane, envelope.priority),
        streamed=bool(peek.stream),
        session=check_name("session", envelope.session),
        user=envelope.user,
        reply_to=check_name("reply_to", envelope.reply_to),
        task_id=check_name("task_id", envelope.task_id),
        expires_in_s=expiry_of(config, envelope.expires_in),
        metadata=_raw(envelope.metadata),
    )
    return Request(task=task, body=body, pool=pool_of(config, peek.model))


def _from_shorthand(config: Config, short: Shorthand) -> Request:
    if short.template_id is not None and short.template_id not in TEMPLATES:
        raise InvalidRequest(
            f"There is no template {short.template_id[:80]!r}; known: {', '.join(TEMPLATES)}", param="template_id"
        )
    model = short.model or _only_model(config)
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": short.input_text}], "stream": True}
    body["stream_options"] = {"include_usage": True}
    for name in ("max_tokens", "temperature"):
        if (value := getattr(short, name)) is not None:
            body[name] = value
    task = Task(
        route=CHAT,
        model=model,
        tenant=DEFAULT_TENANT,
        lane=lane_of(short.lane, short.priority),
        streamed=True,
        session=check_name("session", short.session) or check_name("user_id", short.user_id),
        user=short.user_id,
        reply_to=check_name("reply_to", short.reply_to),
        task_id=check_name("task_id", short.task_id),
        expires_in_s=expiry_of(config, short.expires_in),
        template_id=short.template_id or "",
        context=_raw(short.context),
        metadata=_raw(short.metadata),
    )
    return Request(task=task, body=msgspec.json.encode(body), pool=pool_of(config, model))


def _only_model(config: Config) -> str:
    models = [pool.model for pool in config.pools.values()]
    if len(models) > 1:
        raise InvalidRequest(f"`model` is missing; served here: {', '.join(models)}", param="model")
    return models[0]


def _raw(value: Any) -> Raw:
    return NULL if value is None else Raw(msgspec.json.encode(value))


def _decode(decoder: Any, data: bytes, shape: type[Struct] | None, *, prefix: str = "") -> Any:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _explain(error, shape, prefix) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        where = f"`{prefix}`" if prefix else "The body"
        raise InvalidRequest(f"{where} is not valid JSON: {error}", param=prefix or None) from None


def _explain(error: msgspec.ValidationError, shape: type[Struct] | None, prefix: str = "") -> InvalidRequest:
    """msgspec's message, with the field as `param` and the nearest known name for an unknown one."""
    text, _, path = str(error).partition(" - at `$")
    param = ".".join(part for part in (prefix, path.rstrip("`").lstrip(".")) if part)
    if "unknown field" in text and shape is not None:
        unknown = text.rpartition("unknown field ")[2].strip("`")
        known = [field.encode_name for field in msgspec.structs.fields(shape)]
        near = get_close_matches(unknown, known, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
        return InvalidRequest(f"The field `{unknown}` is unknown; {hint}", param=unknown)
    if "missing required field" in text:
        missing = text.rpartition("field ")[2].strip("`")
        param = ".".join(part for part in (param, missing) if part)
        return InvalidRequest(f"The field `{param}` is missing.", param=param)
    at = f"`{param}`: " if param else ""
    return InvalidRequest(f"{at}{text}", param=param or None)
