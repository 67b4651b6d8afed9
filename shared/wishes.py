"""What a request may ask for besides its body, read alike at every door: from JSON, from flat fields and from headers."""

import re
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from shared.cache import OFF, REFRESH
from shared.clock import now_ms
from shared.config import Config
from shared.errors import Forbidden, InvalidRequest
from shared.lifecycle import LANE_WORDS, Lane
from shared.messages import NULL
from shared.payer import Payer

NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,128}")
"""What may become part of a key: tenants, sessions, reply streams, producers' ids."""
REFUSE, WAIT = "refuse", "wait"


class CacheWish(Struct, frozen=True, forbid_unknown_fields=True):
    ttl_s: int


class Wishes(Struct, frozen=True):
    """The headers of the OpenAI API's own routes; empty: not said."""

    lane: str = ""
    cache: str = ""
    expires_in: str = ""
    on_limit: str = ""
    session: str = ""
    """Where its events go, too: whoever follows the session sees the task wait before it answers."""
    webhook: str = ""


NO_WISHES = Wishes()

_moment = Annotated[datetime, Meta(tz=True)]


def check_name(field: str, value: str) -> str:
    """Names become parts of keys. Raises: InvalidRequest."""
    if value and not NAME.fullmatch(value):
        raise InvalidRequest(
            f"`{field}` is {value[:80]!r}; allowed are 1 to 128 letters, digits and the signs _ . : @ -", param=field
        )
    return value


def key_of(said: str, beside: str) -> str:
    """The producer's key, which a request has in its field `task_id` or in the header Idempotency-Key."""
    if said and beside and said != beside:
        raise InvalidRequest("`task_id` and the header Idempotency-Key differ; send one of them.", param="task_id")
    return check_name("task_id", said or beside)


def tenant_of(payer: Payer, said: str) -> str:
    """Who pays: who the door says it is, or a name in the request where nobody's is proved. Raises: Forbidden."""
    if not said or said == payer.tenant:
        return payer.tenant
    if payer.named:
        raise Forbidden(said, payer.tenant)
    return check_name("tenant", said)


def lane_of(lane: str, priority: str | None = None, *, field: str = "lane") -> Lane:
    word, field = (lane, field) if priority is None else (priority, "priority")
    if word not in LANE_WORDS:
        raise InvalidRequest(f"`{field}` is {word[:80]!r}; allowed: {', '.join(LANE_WORDS)}", param=field)
    return LANE_WORDS[word]


def waits_of(said: str, *, field: str = "on_limit") -> bool:
    if said not in (REFUSE, WAIT):
        raise InvalidRequest(f"`{field}` is {said[:80]!r}; allowed: {REFUSE}, {WAIT}", param=field)
    return said == WAIT


def cache_of(config: Config, said: str | CacheWish | None, *, field: str = "cache") -> str:
    """As Task.cache holds it; empty: as the rules say."""
    if said is None:
        return ""
    word = str(said.ttl_s) if isinstance(said, CacheWish) else said
    if word in (OFF, REFRESH):
        return word
    kept_s = config.limits.results_kept_s
    if not (word.isascii() and word.isdecimal() and len(word) < 10 and 1 <= int(word) <= kept_s):
        raise InvalidRequest(
            f"`{field}` is {word[:80]!r}; allowed: {OFF}, {REFRESH}, or whole seconds from 1 to {kept_s} "
            "(limits.results_kept_s)",
            param=field,
        )
    return str(int(word))


def expiry_of(config: Config, said: float | None, *, field: str = "expires_in") -> float:
    """Seconds; 0: as long as its lane allows. Raises: InvalidRequest."""
    limit = config.limits.waiting_s
    if said is None:
        return 0.0
    if not 0 < said <= limit:  # not-a-number, which a flat field can say, is refused too
        raise InvalidRequest(
            f"`{field}` is {said}; allowed: above 0, at most {limit} seconds (limits.waiting_s)", param=field
        )
    return said


def seconds_of(said: str, *, field: str) -> float | None:
    """What a header says; None: nothing."""
    try:
        return float(said) if said else None
    except ValueError:
        raise InvalidRequest(f"`{field}` is {said[:80]!r}; expected seconds", param=field) from None


class Times(Struct, frozen=True):
    not_before_ms: int
    expires_in_s: float


def times_of(config: Config, not_before: str | float | None, expires_in: float | None) -> Times:
    """When a task may start, and for how long it is worth something. What is past means at once. Raises: InvalidRequest."""
    expires_in_s = expiry_of(config, expires_in)
    if not_before is None:
        return Times(0, expires_in_s)
    limit_s = config.limits.waiting_s
    start_ms = _unix_ms(not_before, limit_s)
    delay_s = (start_ms - now_ms()) / 1000
    if delay_s <= 0:
        return Times(0, expires_in_s)
    if delay_s >= limit_s:
        raise _wrong_start(not_before, limit_s)
    if expires_in is not None and delay_s >= expires_in:
        raise InvalidRequest(
            f"`expires_in` is {expires_in}: the task would end before `not_before`, in {delay_s:.0f} seconds; "
            "it counts from the submission",
            param="expires_in",
        )
    return Times(start_ms, expires_in_s)


def _unix_ms(said: str | float, limit_s: int) -> int:
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = msgspec.convert(said, _moment).timestamp()
        except msgspec.ValidationError:
            raise _wrong_start(said, limit_s) from None
    if not abs(seconds) < 1e11:  # milliseconds, not-a-number, nonsense
        raise _wrong_start(said, limit_s)
    return int(seconds * 1000)


def _wrong_start(said: Any, limit_s: int) -> InvalidRequest:
    return InvalidRequest(
        f"`not_before` is {str(said)[:80]!r}; allowed: a time with its offset, such as 2026-01-31T18:00:00Z, or Unix seconds, "
        f"less than {limit_s} seconds from now (limits.waiting_s)",
        param="not_before",
    )


def raw(value: Any) -> Raw:
    return NULL if value is None else Raw(msgspec.json.encode(value))
