"""What a request may ask for beside its body: who pays, when, how long, what if it is too much, and the kept answers."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from shared.clock import now_ms
from shared.config import Config, Limits, Pool
from shared.errors import Forbidden, InvalidRequest, RequestError
from shared.lifecycle import Lane
from shared.messages import Task
from shared.payer import ANONYMOUS, Payer
from shared.request import CHAT, from_fields, from_json, from_openai
from shared.wishes import Wishes

BODY = {"model": "m", "messages": []}
PLAIN = b'{"model":"m"}'
CONFIG = Config(pools={"smol": Pool(model="m", engine="echo")}, limits=Limits(waiting_s=3600, results_kept_s=600))
OWN = Payer(tenant="acme", key="k1", named=True)

Door = Callable[..., Task]


def envelope(payer: Payer = ANONYMOUS, config: Config = CONFIG, **fields: Any) -> Task:
    return from_json(config, payer, msgspec.json.encode({"body": BODY, **fields})).task


def shorthand(payer: Payer = ANONYMOUS, config: Config = CONFIG, **fields: Any) -> Task:
    return from_json(config, payer, msgspec.json.encode({"input_text": "x", **fields})).task


def flat(payer: Payer = ANONYMOUS, config: Config = CONFIG, **fields: Any) -> Task:
    return from_fields(config, payer, {"input_text": "x", **{name: str(value) for name, value in fields.items()}}).task


def headers(payer: Payer = ANONYMOUS, config: Config = CONFIG, **wishes: str) -> Task:
    return from_openai(config, payer, CHAT, PLAIN, wishes=Wishes(**wishes)).task


@pytest.fixture(params=[envelope, shorthand, flat], ids=lambda door: str(door.__name__))
def door(request: pytest.FixtureRequest) -> Door:
    return request.param  # type: ignore[no-any-return]


def refused(door: Door, param: str, **fields: Any) -> str:
    with pytest.raises(RequestError) as caught:
        door(**fields)
    assert caught.value.param == param
    return str(caught.value)


# -- who pays


def test_where_nobody_is_known_a_request_may_say_who_pays(door: Door) -> None:
    assert door().tenant == "default"
    assert door(tenant="acme").tenant == "acme"
    assert door(Payer(tenant="front")).tenant == "front"
    assert "`tenant` is 'a b'" in refused(door, "tenant", tenant="a b")


def test_a_key_says_who_pays_and_a_request_may_not_say_otherwise(door: Door) -> None:
    assert (door(OWN).tenant, door(OWN).key) == ("acme", "k1")
    assert door(OWN, tenant="acme").tenant == "acme"
    with pytest.raises(Forbidden) as caught:
        door(OWN, tenant="other")
    assert (caught.value.status, caught.value.code, caught.value.param) == (403, "tenant_not_yours", "tenant")
    task = headers(OWN)
    assert (task.tenant, task.key) == ("acme", "k1")


# -- when


def in_seconds(delay_s: float) -> float:
    return now_ms() / 1000 + delay_s


def about(ms: int, delay_s: float) -> bool:
    return abs(ms - now_ms() - delay_s * 1000) < 5000


def test_a_task_may_be_for_later_in_either_notation(door: Door) -> None:
    assert door().not_before_ms == 0
    assert about(door(not_before=in_seconds(600)).not_before_ms, 600)
    moment = datetime.now(UTC) + timedelta(seconds=600)
    east = moment.astimezone(timezone(timedelta(hours=5)))
    for text in (moment.isoformat(), moment.strftime("%Y-%m-%dT%H:%M:%SZ"), east.isoformat()):
        assert about(door(not_before=text).not_before_ms, 600)


@pytest.mark.parametrize("moment", [0, 1, -5, "1999-01-01T00:00:00Z", 1700000000])
def test_what_is_past_means_at_once(door: Door, moment: str | float) -> None:
    assert door(not_before=moment).not_before_ms == 0


@pytest.mark.parametrize(
    "moment", ["tomorrow", "2026-01-31", "2026-01-31T18:00:00", "nan", "inf", "", "1e999", "2026-13-01T00:00:00Z"]
)
def test_what_is_no_moment_is_refused_with_what_would_be_one(door: Door, moment: str) -> None:
    """A time without its offset is one that client and server may read differently."""
    said = refused(door, "not_before", not_before=moment)
    assert f"`not_before` is {moment!r}; allowed: a time with its offset, such as 2026-01-31T18:00:00Z, or Unix" in said


@pytest.mark.parametrize("delay_s", [3601, 86_400 * 365])
def test_a_task_may_not_be_for_later_than_it_may_wait(door: Door, delay_s: float) -> None:
    assert "less than 3600 seconds from now (limits.waiting_s)" in refused(
        door, "not_before", not_before=in_seconds(delay_s)
    )
    assert "less than 3600" in refused(door, "not_before", not_before=now_ms() + 1000)  # milliseconds


def test_a_task_that_would_end_before_it_may_start_is_refused(door: Door) -> None:
    said = refused(door, "expires_in", not_before=in_seconds(600), expires_in=500)
    assert said.startswith("`expires_in` is 500.0: the task would end before `not_before`, in 600 seconds")
    assert door(not_before=in_seconds(600), expires_in=700).expires_in_s == 700
    assert door(not_before=in_seconds(600)).expires_in_s == 0


# -- over a limit, and kept answers


def test_a_task_may_wait_instead_of_being_refused(door: Door) -> None:
    assert door().waits is False
    assert door(on_limit="refuse").waits is False
    assert door(on_limit="wait").waits is True
    assert refused(door, "on_limit", on_limit="maybe") == "`on_limit` is 'maybe'; allowed: refuse, wait"


@pytest.mark.parametrize(("said", "kept"), [("off", "off"), ("60", "60"), ("007", "7"), ("600", "600")])
def test_the_cache_is_asked_for_by_a_word_or_in_seconds(door: Door, said: str, kept: str) -> None:
    assert door(cache=said).cache == kept
    assert headers(cache=said).cache == kept


def test_the_cache_is_asked_for_as_an_object_in_json() -> None:
    assert envelope(cache={"ttl_s": 60}).cache == shorthand(cache={"ttl_s": 60}).cache == "60"
    for json in (envelope, shorthand):
        assert "`cache` is '0'; allowed: off, refresh" in refused(json, "cache", cache={"ttl_s": 0})
        assert "unknown field `ttl`" in refused(json, "cache", cache={"ttl": 5, "ttl_s": 5})


@pytest.mark.parametrize("said", ["on", "0", "-1", "601", "1.5", "", "٣", "9" * 5000])
def test_what_is_no_wish_for_the_cache_is_refused(door: Door, said: str) -> None:
    assert f"allowed: {'off, refresh'}, or whole seconds from 1 to 600" in refused(door, "cache", cache=said)


# -- headers of the OpenAI API's own routes


def test_headers_say_what_a_body_of_the_openai_api_cannot() -> None:
    task = headers(lane="low", cache="60", expires_in="7.5", on_limit="wait", session="ann")
    assert (task.lane, task.cache, task.expires_in_s, task.waits) == (Lane.BATCH, "60", 7.5, True)
    assert task.session == "ann"
    assert headers().lane is Lane.INTERACTIVE
    assert (headers(session="s-1").session, headers().session) == ("s-1", "")


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"lane": "urgent"}, "`x-headrace-lane` is 'urgent'; allowed: interactive"),
        ({"cache": "on"}, "`x-headrace-cache` is 'on'; allowed: off"),
        ({"expires_in": "soon"}, "`x-headrace-expires-in` is 'soon'; expected seconds"),
        ({"expires_in": "nan"}, "`x-headrace-expires-in` is nan; allowed: above 0"),
        ({"expires_in": "3601"}, "`x-headrace-expires-in` is 3601.0; allowed: above 0, at most 3600"),
        ({"session": "a b"}, "`x-headrace-session` is 'a b'; allowed are 1 to 128"),
        ({"on_limit": "no"}, "`x-headrace-on-limit` is 'no'; allowed: refuse, wait"),
        ({"session": "a b"}, "`x-headrace-session` is 'a b'; allowed are 1 to 128 letters"),
    ],
)
def test_a_wrong_header_is_refused_by_its_name(wishes: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        from_openai(CONFIG, ANONYMOUS, CHAT, PLAIN, wishes=Wishes(**wishes))
    assert message in str(caught.value)
