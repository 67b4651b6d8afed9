"""The shorthand: a text and a few options, flat enough for the fields of a stream, made into a chat by a template."""

from typing import Any

import msgspec
from msgspec import Struct

from shared.config import Config
from shared.errors import InvalidRequest
from shared.routing import names
from shared.templates import DEFAULT, Filled, render, template_of
from shared.wishes import REFUSE, CacheWish


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
    tenant: str = ""
    not_before: str | float | None = None
    on_limit: str = REFUSE
    cache: str | CacheWish | None = None
    webhook: str = ""


class Written(Struct, frozen=True):
    """The chat that a shorthand stands for. It is streamed, for whoever watches."""

    model: str
    """As the client, or else the template, calls it."""
    body: bytes
    fingerprint: bytes
    """What was asked for, if the body depends on a template, which may change; else empty."""


def write(config: Config, short: Shorthand) -> Written:
    """Raises: InvalidRequest, TemplateNotFound, TemplateFailed, BodyTooLarge."""
    name = DEFAULT if short.template_id is None else short.template_id
    template = template_of(config.policy, name)
    model = short.model or (template.model if template else "") or _only_model(config)
    filled = Filled(short.input_text, short.context or {}, short.user_id)
    messages = render(config.policy, name, filled, config.limits.body_bytes)
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
    body["stream_options"] = {"include_usage": True}
    said = {field: getattr(short, field) for field in ("max_tokens", "temperature")}
    options = {field: value for field, value in said.items() if value is not None}
    if template is None:
        return Written(model, msgspec.json.encode(body | options), b"")
    asked = [name, short.model, short.input_text, short.context, short.user_id, options]
    return Written(model, msgspec.json.encode(body | template.options | options), msgspec.json.encode(asked))


def _only_model(config: Config) -> str:
    models = [pool.model for pool in config.pools.values()]
    if len(models) > 1:
        known = ", ".join(names(config.policy, config.pools))
        raise InvalidRequest(f"`model` is missing; served here: {known}", param="model")
    return models[0]
