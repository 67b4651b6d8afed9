"""Which requests share an answer: never two that could get different ones, and as many as safely may."""

import json
import random
from typing import Any, Final

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared.cache import FRACTIONS, IRRELEVANT, CacheKey, key_for
from shared.errors import InvalidRequest
from shared.messages import Task
from shared.policy import CacheRule, Policy

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
KEPT_S = 3600
ALWAYS = Policy(cache=[CacheRule(ttl_s=60, when="always")])
DETERMINISTIC = Policy(cache=[CacheRule(ttl_s=60)])
NONE = Policy()

names = st.text(max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
bodies = st.dictionaries(
    names | st.sampled_from(["messages", "temperature", "n", "stream", "tools"]), values, max_size=5
)


def task(**more: Any) -> Task:
    return Task(**{"route": CHAT, "model": "m", "tenant": "t", **more})


def key(body: bytes | dict[str, Any], said: str = "", policy: Policy = ALWAYS, **of_task: Any) -> CacheKey | None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return key_for(policy, task(**of_task), data, said, KEPT_S)


def digest(body: bytes | dict[str, Any], policy: Policy = ALWAYS, **of_task: Any) -> str:
    made = key(body, policy=policy, **of_task)
    assert made is not None
    return made.digest


def shuffled(value: Any, by: random.Random) -> Any:
    if isinstance(value, list):
        return [shuffled(item, by) for item in value]
    if not isinstance(value, dict):
        return value
    items = [(name, shuffled(item, by)) for name, item in value.items()]
    by.shuffle(items)
    return dict(items)


# -- the digest


@given(bodies, st.randoms(use_true_random=False), st.sampled_from([None, 1, 3]), st.booleans())
def test_order_of_names_space_and_escapes_do_not_count(
    body: dict[str, Any], by: random.Random, indent: int | None, escaped: bool
) -> None:
    again = json.dumps(shuffled(body, by), indent=indent, ensure_ascii=escaped).encode()
    assert digest(again) == digest(body)


@given(bodies, bodies)
def test_bodies_that_are_written_alike_but_differ_never_share_an_answer(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Compared as they are written: in Python 1 == True == 1.0."""
    deciding = [
        json.dumps({name: value for name, value in body.items() if name not in IRRELEVANT}, sort_keys=True)
        for body in (one, other)
    ]
    assume(deciding[0] != deciding[1] and not FRACTIONS & one.keys() & other.keys())
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"seed":1}', b'{"seed":1.0}'),
        (b'{"seed":1}', b'{"seed":1e0}'),
        (b'{"x":0.1}', b'{"x":0.10000000000000000001}'),
        (b'{"temperature":1e400}', b'{"temperature":null}'),
        (b'{"temperature":1e400}', b'{"temperature":1e401}'),
        (b'{"temperature":1}', b'{"temperature":true}'),
        (b'{"temperature":1}', b'{"temperature":"1"}'),
        (b'{"temperature":0.1}', b'{"temperature":0.10000000000000002}'),
        (b'{"x":{"temperature":0}}', b'{"x":{"temperature":0.0}}'),
        (b'{"seed":12345678901234567890123}', b'{"seed":12345678901234567890124}'),
        (b'{"seed":1e400}', b'{"seed":1e401}'),
        (b'{"seed":0.0}', b'{"seed":-0.0}'),
        (b'{"seed":1}', b'{"seed":"1"}'),
        (b'{"seed":1}', b'{"seed":true}'),
        (b'{"stop":null}', b"{}"),
        (b'{"stop":["a","b"]}', b'{"stop":["b","a"]}'),
        (b'{"tools":{"user":1}}', b'{"tools":{"user":2}}'),
        (b'{"cache_salt":"a"}', b'{"cache_salt":"b"}'),
    ],
)
def test_what_may_decide_the_answer_counts(one: bytes, other: bytes) -> None:
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [(b"0", b"0.0"), (b"0", b"-0.0"), (b"1", b"1e0"), (b"0.7", b"7E-1"), (b"0.1", b"0.10000000000000000001")],
)
def test_fractions_are_the_same_however_they_are_written(one: bytes, other: bytes) -> None:
    assert digest(b'{"temperature":%b}' % one) == digest(b'{"temperature":%b}' % other)
    assert digest(b'{"temperature":%b}' % (b"9" * 400)) != digest(b'{"temperature":null}')


@given(bodies, st.sampled_from(["user", "metadata", "store", "model"]), values)
def test_what_does_not_decide_the_answer_does_not_count(body: dict[str, Any], name: str, value: Any) -> None:
    assert digest({**body, name: value}) == digest({k: v for k, v in body.items() if k != name})


def test_stream_that_tells_its_usage_shares_with_whole_answers_and_one_that_does_not_only_with_its_like() -> None:
    whole, counted = digest({}), digest({"stream": True, "stream_options": {"include_usage": True}})
    bare = digest({"stream": True})
    assert whole == counted != bare
    assert digest({"stream": False}) == digest({"stream": None}) == whole
    assert digest({"stream": True, "stream_options": {"include_usage": False}}) == bare
    assert digest({"stream": True, "stream_options": None}) == bare


def test_route_model_and_tenant_count_and_what_the_client_calls_the_model_does_not() -> None:
    asked = {"model": "alias", "prompt": "x"}
    others = [digest(asked, route=COMPLETIONS), digest(asked, model="n"), digest(asked, tenant="u"), digest(asked)]
    assert len(set(others)) == 4
    assert digest({**asked, "model": "m"}, alias="alias") == digest(asked)


@given(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
def test_parts_of_a_key_never_run_into_each_other(model: str, tenant: str, other_model: str, other_tenant: str) -> None:
    assume((model, tenant) != (other_model, other_tenant))
    assert digest({}, model=model, tenant=tenant) != digest({}, model=other_model, tenant=other_tenant)


def test_what_was_made_of_a_file_is_shared_with_no_other_tenant() -> None:
    shared = Policy(cache=[CacheRule(ttl_s=60, when="always", shared=True)])
    body = {"images": [{"file_id": "file-" + "0" * 32}]}
    assert digest(body, shared, tenant="a") == digest(body, tenant="a") != digest(body, shared, tenant="b")


def test_only_a_shared_rule_shares_between_tenants() -> None:
    shared = Policy(cache=[CacheRule(ttl_s=60, when="always", shared=True)])
    assert digest({}, shared, tenant="a") == digest({}, shared, tenant="b") != digest({}, tenant="a")
    alike = [key_for(shared, task(tenant=tenant), b"{}", "9", KEPT_S) for tenant in ("a", "b")]
    assert alike[0] == alike[1], "seconds replace how long, not with whom"
    alone = [key_for(NONE, task(tenant=tenant), b"{}", "9", KEPT_S) for tenant in ("a", "b")]
    assert alone[0] != alone[1]


def test_key_is_sixteen_bytes_in_hex_and_its_field_is_what_the_scripts_read() -> None:
    made = key({})
    assert made is not None
    assert len(made.digest) == 32
    assert made.field == f"{made.digest} 60000 use"
    again = key({}, "refresh")
    assert again is not None
    assert again.field == f"{made.digest} 60000 refresh"


# -- rules


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": -0.0}, True),
        ({"temperature": 0, "n": 1}, True),
        ({"temperature": 0, "n": None, "top_k": 40, "tools": [{}], "seed": 3}, True),
        ({}, False),
        ({"temperature": None}, False),
        ({"temperature": 0.1}, False),
        ({"temperature": "0"}, False),
        ({"temperature": False}, False),
        ({"temperature": 0, "n": 2}, False),
        ({"temperature": 0, "n": True}, False),
    ],
)
def test_deterministic_is_temperature_zero_said_and_one_answer(body: dict[str, Any], kept: bool) -> None:
    assert (key(body, policy=DETERMINISTIC) is not None) is kept


def test_first_rule_that_fits_is_taken() -> None:
    policy = Policy(
        cache=[
            CacheRule(ttl_s=1, route=COMPLETIONS, when="always"),
            CacheRule(ttl_s=2, template="faq", when="always"),
            CacheRule(ttl_s=3),
            CacheRule(ttl_s=4, when="always"),
            CacheRule(ttl_s=5, when="always"),
        ]
    )
    asked = [
        key({"temperature": 0}, policy=policy, route=COMPLETIONS, template_id="faq"),
        key({"temperature": 0}, policy=policy, template_id="faq"),
        key({"temperature": 0}, policy=policy),
        key({}, policy=policy),
    ]
    assert [made and made.ttl_s for made in asked] == [1, 2, 3, 4]


def test_without_a_rule_that_fits_nothing_is_kept() -> None:
    assert key({}, policy=NONE) is None
    assert key({}, policy=DETERMINISTIC) is None
    assert key({"temperature": 0}, policy=Policy(cache=[CacheRule(ttl_s=1, template="faq")])) is None


def test_answer_of_a_rule_lives_no_longer_than_results() -> None:
    made = key({}, policy=Policy(cache=[CacheRule(ttl_s=KEPT_S + 1, when="always")]))
    assert made is not None
    assert made.ttl_s == KEPT_S


# -- what the request says


@pytest.mark.parametrize("policy", [ALWAYS, DETERMINISTIC, NONE])
def test_off_is_off(policy: Policy) -> None:
    assert key({"temperature": 0}, "off", policy) is None


@pytest.mark.parametrize("policy", [ALWAYS, DETERMINISTIC, NONE])
@pytest.mark.parametrize("said", ["1", "60", str(KEPT_S)])
def test_seconds_keep_any_answer_for_so_long(policy: Policy, said: str) -> None:
    made = key({}, said, policy)
    assert made is not None
    assert (made.ttl_s, made.refresh) == (int(said), False)


@pytest.mark.parametrize(
    "said", ["0", "-1", "1.5", "soon", str(KEPT_S + 1), "9" * 5000, "\u00b2", "\u0661", " 5", "Off"]
)
def test_other_words_are_refused_with_what_is_allowed(said: str) -> None:
    with pytest.raises(InvalidRequest, match=r"off, refresh, or whole seconds from 1 to 3600 \(limits") as refused:
        key({}, said)
    assert refused.value.param == "cache"
    assert len(str(refused.value)) < 300


def test_refresh_takes_the_time_of_its_rule_and_is_refused_without_one() -> None:
    assert key({"temperature": 0}, "refresh", DETERMINISTIC) == CacheKey(
        digest({"temperature": 0}, DETERMINISTIC), 60, True
    )
    with pytest.raises(InvalidRequest, match="no rule says how long") as refused:
        key({}, "refresh", DETERMINISTIC)
    assert refused.value.param == "cache"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"a":"\xff"}', b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"])
def test_body_that_is_no_object_has_no_key_and_is_refused_where_one_was_asked_for(body: bytes) -> None:
    assert key(body) is None
    assert key(body, "off") is None
    with pytest.raises(InvalidRequest, match="not a JSON object"):
        key(body, "60")


def test_bodies_of_every_depth_that_can_be_read_have_a_key() -> None:
    """Reading and writing may recurse differently: a body near the limit is refused, never a crash."""
    for depth in range(150, 1100, 7):
        made = key(b'{"a":' + b"[" * depth + b"]" * depth + b"}")
        assert made is None or len(made.digest) == 32


@given(bodies)
def test_any_body_that_json_can_write_has_a_key(body: dict[str, Any]) -> None:
    assert msgspec.json.decode(json.dumps(body)) is not None
    assert key(body) is not None


# -- what is never kept


def test_a_speech_that_streams_is_not_kept_since_its_last_event_has_no_sound() -> None:
    body = {"model": "m", "input": "do", "stream_format": "sse"}
    assert key(body, route="/v1/audio/speech", streamed=True) is None
    assert key(body, said="off", route="/v1/audio/speech", streamed=True) is None
    with pytest.raises(InvalidRequest, match="leave out `cache`"):
        key(body, said="60", route="/v1/audio/speech", streamed=True)
    assert key({"model": "m", "input": "do"}, route="/v1/audio/speech") is not None
