"""Which requests share an answer: the key of a request, and how long its answer is kept. Pure; the scripts do the rest.

Two requests are the same if all that decides the answer is: the path, the model that serves them, the tenant (unless a rule
shares answers between tenants) and the body without the fields of `IRRELEVANT`. A body is compared as a value: the order of
names and white space do not count. A number is compared as it is written, so 1 and 1.0 differ, but for those of `FRACTIONS`:
that costs an answer found, and never finds a wrong one.
"""

import hashlib
import math
import re
from typing import Any

import msgspec
from msgspec import Raw, Struct

from shared.errors import UNDECODABLE, InvalidRequest
from shared.messages import Task
from shared.policy import CacheRule, Policy
from shared.routes import SPEECH

OFF, REFRESH = "off", "refresh"
IRRELEVANT = frozenset({"model", "stream", "stream_options", "user", "metadata", "store"})
"""Fields that do not decide the answer. The model is compared by the name that serves it, not by what the client calls it."""
FRACTIONS = frozenset(
    {"temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "length_penalty"}
)
"""Fields that every engine reads as a double: clients write 0 or 0.0 as their language does."""
DIGEST_BYTES = 16
_FILE = re.compile(rb'"file-[0-9a-f]{32}"')
"""A file by its id. Whether it may be read depends on who asks, so an answer that was made of it is of one tenant, whatever a rule
shares."""


class CacheKey(Struct, frozen=True):
    digest: str
    """Of all that decides the answer, and of the tenant unless it is shared."""
    ttl_s: int
    refresh: bool = False
    """Run it, and keep the new answer."""

    @property
    def field(self) -> str:
        """As the task's hash holds it: digest, milliseconds, `use` or `refresh`."""
        return f"{self.digest} {self.ttl_s * 1000} {'refresh' if self.refresh else 'use'}"


_body = msgspec.json.Decoder(dict[str, Any], float_hook=lambda written: Raw(written.encode()))
_canonical = msgspec.json.Encoder(order="deterministic")


def key_for(policy: Policy, task: Task, body: bytes, said: str, kept_s: int) -> CacheKey | None:
    """None: the answer is neither looked up nor kept.

    `said` is what the request says of it: nothing (the rules decide), `off`, `refresh` or seconds; `kept_s`: how long results
    are kept, so no answer lives longer. Raises: InvalidRequest.
    """
    if said == OFF or not (said or policy.cache):
        return None
    if task.route == SPEECH and task.streamed:  # of its events the last one is kept, and that has no sound
        if not said:
            return None
        raise InvalidRequest("A speech that is streamed as events is not kept; leave out `cache`.", param="cache")
    wanted_s = None if said in ("", REFRESH) else _seconds(said, kept_s)
    try:
        asked = _body.decode(body)
        deciding = _canonical.encode(
            {name: _plain(name, value) for name, value in asked.items() if name not in IRRELEVANT}
        )
    except UNDECODABLE as error:
        if not said:  # it is refused elsewhere, or by the engine
            return None
        raise InvalidRequest(f"The body is not a JSON object: {error}", param="body") from None
    rule = next((rule for rule in policy.cache if _fits(rule, task, asked)), None)
    if wanted_s is None and rule is not None:
        wanted_s = min(rule.ttl_s, kept_s)
    if wanted_s is None:
        if not said:
            return None
        raise InvalidRequest(
            "`cache` is 'refresh', but no rule says how long the answer of such a request is kept; send seconds.",
            param="cache",
        )
    shared = rule is not None and rule.shared and _FILE.search(body) is None
    whose = None if shared else task.tenant
    parts = [task.route, task.model, whose, _counts_tokens(asked), Raw(deciding)]
    digest = hashlib.blake2b(msgspec.json.encode(parts), digest_size=DIGEST_BYTES).hexdigest()
    return CacheKey(digest, wanted_s, said == REFRESH)


def _seconds(said: str, kept_s: int) -> int:
    if not (said.isascii() and said.isdecimal() and len(said) < 10 and 1 <= int(said) <= kept_s):
        raise InvalidRequest(
            f"`cache` is {said[:80]!r}; allowed: off, refresh, or whole seconds from 1 to {kept_s} (limits.results_kept_s)",
            param="cache",
        )
    return int(said)


def _fits(rule: CacheRule, task: Task, asked: dict[str, Any]) -> bool:
    if rule.route not in ("", task.route) or rule.template not in ("", task.template_id):
        return False
    return rule.when == "always" or _is_deterministic(asked)


def _is_deterministic(asked: dict[str, Any]) -> bool:
    """A temperature of 0 that was asked for, and one answer: several of them are sampled."""
    temperature, count = asked.get("temperature"), asked.get("n")
    if isinstance(temperature, Raw):
        temperature = float(bytes(temperature))
    is_zero = temperature == 0 and not isinstance(temperature, bool)
    return is_zero and (count is None or (count == 1 and not isinstance(count, bool)))


def _plain(name: str, value: Any) -> Any:
    """The value, or the double that it is. What is no double, such as 1e400, stays as written."""
    if name not in FRACTIONS or isinstance(value, bool) or not isinstance(value, int | Raw):
        return value
    try:
        number = float(bytes(value) if isinstance(value, Raw) else value)
    except OverflowError:
        return value
    return number + 0.0 if math.isfinite(number) else value


def _counts_tokens(asked: dict[str, Any]) -> bool:
    """Does the answer tell its usage? A whole one does, a stream only if asked: an answer kept without it is no whole one."""
    options = asked.get("stream_options")
    return not asked.get("stream") or (isinstance(options, dict) and options.get("include_usage") is True)
