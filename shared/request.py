"""What a door takes in, made into a task: one set of rules for HTTP and for the stream, so both refuse alike.

Three shapes: the envelope (`POST /v1/tasks`), the shorthand (flat, `input_text`; shared/shorthand.py), and a plain body of an
engine's route, JSON or a form. Of a body, only `model` is ever changed, and only if it was an alias: every other value reaches
the engine byte for byte as it came.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from shared import forms
from shared.cache import CacheKey, key_for
from shared.config import Config
from shared.errors import BodyTooLarge, InvalidRequest
from shared.lifecycle import Lane
from shared.messages import Response, Task
from shared.payer import Payer
from shared.peek import Rename, model_of, peek_into, renaming
from shared.prefix import look
from shared.reading import explain, read
from shared.routes import CHAT as CHAT
from shared.routes import COMPLETIONS as COMPLETIONS
from shared.routes import ROUTES as ROUTES
from shared.routing import Branch, Casting, choose, variant_of
from shared.shorthand import Shorthand, write
from shared.webhooks import check_webhook
from shared.wishes import (
    NAME as NAME,
)
from shared.wishes import (
    NO_WISHES,
    REFUSE,
    CacheWish,
    Wishes,
    cache_of,
    expiry_of,
    key_of,
    lane_of,
    raw,
    seconds_of,
    tenant_of,
    times_of,
    waits_of,
)
from shared.wishes import check_name as check_name

DEFAULT_TENANT = "default"


class Request(Struct, frozen=True, kw_only=True):
    """A valid request: its task, its body, and the pool that serves its model."""

    task: Task
    body: bytes
    pool: str
    fingerprint: bytes = b""
    """The body as it came, should an alias or a template have changed it: what makes a repeat the same. Of a form with a key
    it is the body without its boundary."""
    tokens_in: int = 0
    """Of the prompt, an estimate."""
    tokens_out: int = 0
    """Most that it may make; 0: not said."""
    prefix: tuple[str, ...] = ()
    """Digests of the prompt's beginnings, the longest first: tasks that share one share KV cache."""
    cache: CacheKey | None = None
    kept_until_ms: int = 0
    """Its result is kept until then (Unix ms, of Redis), unless it is told before that nobody needs it; 0: for as long as results are."""
    fallbacks: tuple["Request", ...] = ()
    """The same for other pools, in turn, should this one accept nothing more."""
    shadow: "Request | None" = None
    """To be submitted beside it, when it was accepted."""


class Envelope(Struct, frozen=True, forbid_unknown_fields=True):
    body: Raw
    route: str = CHAT
    content_type: str = ""
    """Of a body that is not JSON: the body is its bytes, as a string in base64."""
    lane: str = "normal"
    priority: str | None = None
    session: str = ""
    user: str = ""
    task_id: str = ""
    reply_to: str = ""
    expires_in: float | None = None
    metadata: dict[str, Any] | None = None
    tenant: str = ""
    not_before: str | float | None = None
    on_limit: str = REFUSE
    cache: str | CacheWish | None = None
    webhook: str = ""


_envelope = msgspec.json.Decoder(Envelope)
_shorthand = msgspec.json.Decoder(Shorthand)
_object = msgspec.json.Decoder(dict[str, Raw])
_any_object = msgspec.json.Decoder(dict[str, Any])


def from_openai(
    config: Config,
    payer: Payer,
    route: str,
    body: bytes,
    *,
    task_id: str = "",
    attached: bool = False,
    wishes: Wishes = NO_WISHES,
    content_type: str = "",
    response: Response | None = None,
) -> Request:
    """A body sent to the engine's own route. `content_type`: as the header says it. Raises: RequestError."""
    check_size(config, body)
    content_type = content_type if content_type.lower().startswith(forms.FORM) else ""
    peek = peek_into(route, body, content_type)
    lane, waits, cache, expires_in = Lane.INTERACTIVE, False, "", None
    if wishes is not NO_WISHES:
        lane = lane_of(wishes.lane, field="x-headrace-lane") if wishes.lane else lane
        waits = bool(wishes.on_limit) and waits_of(wishes.on_limit, field="x-headrace-on-limit")
        cache = cache_of(config, wishes.cache or None, field="x-headrace-cache")
        expires_in = seconds_of(wishes.expires_in, field="x-headrace-expires-in")
    task = Task(
        route=route,
        model=model_of(config, peek),
        tenant=payer.tenant,
        key=payer.key,
        lane=lane,
        streamed=bool(peek.stream),
        session=check_name("x-headrace-session", wishes.session),
        user=peek.sticky,
        task_id=check_name("task_id", task_id),
        expires_in_s=expiry_of(config, expires_in, field="x-headrace-expires-in"),
        attached=attached,
        waits=waits,
        cache=cache,
        webhook=check_webhook(config.policy, payer.tenant, wishes.webhook, field="x-headrace-webhook"),
        content_type=content_type,
        response=response,
    )
    return _routed(config, task, body)


def from_json(config: Config, payer: Payer, data: bytes, *, key: str = "", origin: str = "") -> Request:
    """The JSON of `POST /v1/tasks` and of the stream door's field `task`.

    `key`: its `task_id`, if it came beside it. `origin`: what the same request bears when it is read again, so that it goes the
    same way. Raises: RequestError.
    """
    check_size(config, data)
    given = read(_object, data, Envelope)
    if "input_text" in given or "template_id" in given:
        return _from_shorthand(config, payer, read(_shorthand, data, Shorthand), key, origin)
    return _from_envelope(config, payer, read(_envelope, data, Envelope), key, origin)


def from_fields(config: Config, payer: Payer, fields: Mapping[str, str], *, origin: str = "") -> Request:
    """The flat fields of an entry of the stream door; `origin` as in from_json. Raises: RequestError."""
    data: dict[str, Any] = dict(fields)
    for name in ("context", "metadata"):
        if name in data:
            data[name] = read(_any_object, fields[name].encode(), None, prefix=name)
    check_size(config, msgspec.json.encode(data))
    if "input_text" not in data:
        raise InvalidRequest("The entry has neither a field `task` (JSON) nor a field `input_text`.", param="task")
    try:
        short = msgspec.convert(data, Shorthand, strict=False)
    except msgspec.ValidationError as error:
        raise explain(error, Shorthand) from None
    return _from_shorthand(config, payer, short, "", origin)


def again(config: Config, task: Task, body: bytes, pool: str) -> Request:
    """A request for a task as it was stored: it goes to that pool, whatever its alias has become."""
    return _on(config, task, body, pool)


def ways(request: Request) -> Iterator[Request]:
    """What to submit, in turn, until one is accepted: as long as a pool is full, or cannot meet the deadline."""
    yield request
    yield from request.fallbacks


def on_pool(config: Config, request: Request, pool: str) -> Request:
    """The same request on the pool that an earlier submission chose: a repeat goes where the first one went."""
    for way in ways(request):
        if way.pool == pool:
            return way
    if pool not in config.pools:  # taken out of the configuration; what became of the first one can still be told
        return request
    model = config.pools[pool].model
    alias = config.policy.aliases.get(request.task.alias)
    branch = Branch(model, variant_of(alias, model) if alias is not None else "", pool)
    return _branch(
        config,
        request.task,
        renaming(request.task.content_type, request.body),
        branch,
        request.fingerprint or request.body,
    )


def check_size(config: Config, body: bytes) -> None:
    if len(body) > config.limits.body_bytes:
        raise BodyTooLarge(config.limits.body_bytes)


def _from_envelope(config: Config, payer: Payer, envelope: Envelope, key: str, origin: str) -> Request:
    if envelope.route not in ROUTES:
        raise InvalidRequest(f"`route` is {envelope.route[:80]!r}; allowed: {', '.join(ROUTES)}", param="route")
    body = _bytes_of(envelope)
    peek = peek_into(envelope.route, body, envelope.content_type, prefix="body")
    times = times_of(config, envelope.not_before, envelope.expires_in)
    tenant = tenant_of(payer, envelope.tenant)
    task = Task(
        route=envelope.route,
        model=model_of(config, peek, prefix="body"),
        tenant=tenant,
        key=payer.key,
        lane=lane_of(envelope.lane, envelope.priority),
        streamed=bool(peek.stream),
        session=check_name("session", envelope.session),
        user=envelope.user or peek.sticky,
        reply_to=check_name("reply_to", envelope.reply_to),
        task_id=key_of(envelope.task_id, key),
        not_before_ms=times.not_before_ms,
        expires_in_s=times.expires_in_s,
        waits=waits_of(envelope.on_limit),
        cache=cache_of(config, envelope.cache),
        webhook=check_webhook(config.policy, tenant, envelope.webhook),
        metadata=raw(envelope.metadata),
        content_type=envelope.content_type,
    )
    return _routed(config, task, body, origin=origin)


def _from_shorthand(config: Config, payer: Payer, short: Shorthand, key: str, origin: str) -> Request:
    written = write(config, short)
    check_size(config, written.body)
    times = times_of(config, short.not_before, short.expires_in)
    tenant = tenant_of(payer, short.tenant)
    task = Task(
        route=CHAT,
        model=written.model,
        tenant=tenant,
        key=payer.key,
        lane=lane_of(short.lane, short.priority),
        streamed=True,
        session=check_name("session", short.session) or check_name("user_id", short.user_id),
        user=short.user_id,
        reply_to=check_name("reply_to", short.reply_to),
        task_id=key_of(short.task_id, key),
        not_before_ms=times.not_before_ms,
        expires_in_s=times.expires_in_s,
        waits=waits_of(short.on_limit),
        cache=cache_of(config, short.cache),
        webhook=check_webhook(config.policy, tenant, short.webhook),
        template_id=short.template_id or "",
        context=raw(short.context),
        metadata=raw(short.metadata),
    )
    return _routed(config, task, written.body, fingerprint=written.fingerprint, origin=origin)


def _bytes_of(envelope: Envelope) -> bytes:
    """Raises: InvalidRequest."""
    if not envelope.content_type:
        return bytes(envelope.body)
    if not envelope.content_type.lower().startswith(forms.FORM):
        raise InvalidRequest(
            f"`content_type` is {envelope.content_type[:80]!r}; allowed: {forms.FORM} with its boundary, or nothing for JSON",
            param="content_type",
        )
    try:
        return base64.b64decode(msgspec.json.decode(envelope.body, type=str), validate=True)
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        raise InvalidRequest(f"`body` is no base64, which `content_type` asks for: {error}", param="body") from None


# -- where it goes


def _routed(config: Config, task: Task, body: bytes, *, fingerprint: bytes = b"", origin: str = "") -> Request:
    name = task.model
    if task.content_type and task.task_id:
        fingerprint = forms.without_boundary(body, task.content_type)
    sticky = task.user or task.session or task.task_id or origin
    choice = choose(config.policy, config.pools, name, sticky)
    if name not in config.policy.aliases:
        return _on(config, task, body, choice.pool, fingerprint)
    rename, asked = renaming(task.content_type, body), fingerprint or body
    task = msgspec.structs.replace(task, alias=name)
    chosen = _branch(config, task, rename, Branch(choice.model, choice.variant, choice.pool), asked)
    return msgspec.structs.replace(
        chosen,
        fallbacks=tuple(_branch(config, task, rename, branch, asked) for branch in choice.fallbacks),
        shadow=_cast(config, task, rename, choice.shadow) if choice.shadow is not None else None,
    )


def _branch(config: Config, task: Task, rename: Rename, branch: Branch, asked: bytes) -> Request:
    task = msgspec.structs.replace(task, model=branch.model, variant=branch.variant)
    return _on(config, task, rename(branch.model), branch.pool, asked)


def _cast(config: Config, task: Task, rename: Rename, shadow: Casting) -> Request:
    """What the producer wants back stays with the task that it asked for, and so does what it limits."""
    copy = Task(
        route=task.route,
        model=shadow.model,
        tenant=shadow.tenant,
        lane=Lane.BATCH,
        streamed=task.streamed,
        user=task.user,
        alias=task.alias,
        cache="off",
        template_id=task.template_id,
        content_type=task.content_type,
    )
    return _on(config, copy, rename(shadow.model), shadow.pool)


def _on(config: Config, task: Task, body: bytes, pool: str, fingerprint: bytes = b"") -> Request:
    prompt = look(task.route, body)
    return Request(
        task=task,
        body=body,
        pool=pool,
        fingerprint=fingerprint,
        tokens_in=prompt.tokens_in,
        tokens_out=prompt.tokens_out,
        prefix=prompt.prefix,
        cache=key_for(config.policy, task, body, task.cache, config.limits.results_kept_s),
    )
