"""One set of rules for both doors: what is taken, and what a refusal says."""

import base64
from typing import Any

import msgspec
import pytest

from shared.config import Config, Limits, Pool
from shared.engine_options import EchoOptions
from shared.errors import BodyTooLarge, InvalidRequest, ModelNotFound, RequestError
from shared.lifecycle import Lane
from shared.messages import NULL
from shared.payer import ANONYMOUS
from shared.policy import Alias, Endpoint, Live, Policy, Target, Webhooks
from shared.request import CHAT, COMPLETIONS, from_fields, from_json, from_openai
from shared.routes import ROUTES, SPEECH, TRANSCRIPTIONS
from shared.wishes import Wishes

CONFIG = Config(pools={"smol": Pool(model="m", engine="echo")}, limits=Limits(body_bytes=2048))
TWO = Config(pools={"a": Pool(model="m", engine="echo"), "b": Pool(model="n", engine="echo", echo=EchoOptions())})


def json(**fields: Any) -> bytes:
    return msgspec.json.encode(fields)


# -- a body of the OpenAI API


def test_openai_body_is_kept_byte_for_byte() -> None:
    body = b'{ "model" : "m",\n "messages": [{"role":"user","content":"\\u00e9"}], "unknown_field": 1.0, "n":2 }'
    request = from_openai(CONFIG, ANONYMOUS, CHAT, body)
    assert request.body == body
    assert request.pool == "smol"
    assert (request.task.route, request.task.model, request.task.lane) == (CHAT, "m", Lane.INTERACTIVE)


@pytest.mark.parametrize(("stream", "streamed"), [(b"true", True), (b"false", False), (b"null", False)])
def test_stream_is_read_from_the_body(stream: bytes, streamed: bool) -> None:
    assert from_openai(CONFIG, ANONYMOUS, COMPLETIONS, b'{"model":"m","stream":%b}' % stream).task.streamed is streamed
    assert not from_openai(CONFIG, ANONYMOUS, COMPLETIONS, b'{"model":"m"}').task.streamed


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"", None, "not valid JSON"),
        (b"{", None, "not valid JSON"),
        (b"\xff", None, "not valid JSON"),
        (b'{"model":"\xff"}', None, "not valid JSON"),
        (b"[]", None, "Expected `object`"),
        (b'"text"', None, "Expected `object`"),
        (b'{"model":7}', "model", "Expected `str | null`, got `int`"),
        (b'{"model":"m","stream":"yes"}', "stream", "Expected `bool | null`, got `str`"),
        (b'{"model":"gpt-9"}', "model", "`gpt-9` does not exist. Served here: m."),
        (b'{"model":"m"} {}', None, "not valid JSON"),
    ],
)
def test_bad_openai_body_is_refused_with_param_and_reason(body: bytes, param: str | None, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        from_openai(CONFIG, ANONYMOUS, CHAT, body)
    assert caught.value.param == param
    assert message in str(caught.value)


@pytest.mark.parametrize("body", [b'{ "x":1 }', b'{"model":null}'])
def test_a_body_without_a_model_goes_to_the_only_pool_as_it_came(body: bytes) -> None:
    request = from_openai(CONFIG, ANONYMOUS, CHAT, body)
    assert (request.pool, request.task.model, request.body) == ("smol", "m", body)
    assert from_json(CONFIG, ANONYMOUS, b'{"body":%b}' % body).task.model == "m"


def test_where_there_is_a_choice_a_body_must_name_its_model() -> None:
    with pytest.raises(InvalidRequest, match=r"`model` is missing\. Served here: m, n") as caught:
        from_openai(TWO, ANONYMOUS, CHAT, b"{}")
    assert caught.value.param == "model"
    with pytest.raises(InvalidRequest) as caught:
        from_json(TWO, ANONYMOUS, b'{"body":{}}')
    assert caught.value.param == "body.model"


# -- every route, and forms


@pytest.mark.parametrize(
    ("route", "format", "streamed"), [(SPEECH, b'"sse"', True), (SPEECH, b'"audio"', False), (CHAT, b'"sse"', False)]
)
def test_a_speech_says_in_words_of_its_own_that_it_streams(route: str, format: bytes, streamed: bool) -> None:
    body = b'{"model":"m","stream_format":%b}' % format
    request = from_openai(CONFIG, ANONYMOUS, route, body)
    assert (request.task.streamed, request.body) == (streamed, body)


@pytest.mark.parametrize("route", ROUTES)
def test_only_routes_that_stream_heed_the_wish_for_a_stream(route: str) -> None:
    if route != SPEECH:
        request = from_openai(CONFIG, ANONYMOUS, route, b'{"model":"m","stream":true}')
        assert request.task.streamed is not ROUTES[route].whole


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_takes_json_at_its_path_and_in_the_envelope(route: str) -> None:
    body = b'{"model":"m","x":[1.0]}'
    for request in (
        from_openai(CONFIG, ANONYMOUS, route, body),
        from_json(CONFIG, ANONYMOUS, b'{"route":"%b","body":%b}' % (route.encode(), body)),
    ):
        assert (request.task.route, request.body, request.task.content_type) == (route, body, "")


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n\xff\r\n--\x00\r\n'
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--x\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n--x--\r\n'
)
FORM_TYPE = "multipart/form-data; boundary=x"
FORM_AGAIN = FORM.replace(b"--x", b"--yy")


def in_envelope(body: bytes, content_type: str) -> dict[str, Any]:
    return {"route": TRANSCRIPTIONS, "content_type": content_type, "body": base64.b64encode(body).decode()}


def test_a_form_is_kept_byte_for_byte_with_its_type() -> None:
    sent = from_openai(CONFIG, ANONYMOUS, TRANSCRIPTIONS, FORM, content_type=FORM_TYPE)
    for request in (sent, from_json(CONFIG, ANONYMOUS, json(**in_envelope(FORM, FORM_TYPE)))):
        assert (request.body, request.task.content_type) == (FORM, FORM_TYPE)
        assert (request.task.model, request.task.streamed, request.pool) == ("m", True, "smol")


def test_of_a_form_only_the_model_changes_and_only_for_an_alias() -> None:
    policy = Policy(aliases={"m": Alias(targets=[Target(model="large")])})
    config = Config(pools={"a": Pool(model="large", engine="echo")}, live=Live(policy))
    request = from_openai(config, ANONYMOUS, TRANSCRIPTIONS, FORM, content_type=FORM_TYPE)
    assert request.body == FORM.replace(b"\r\nm\r\n", b"\r\nlarge\r\n")
    assert request.fingerprint == FORM


def test_of_a_form_with_a_key_a_repeat_may_have_another_boundary() -> None:
    """An HTTP client's own retry builds the form again."""
    policy = Policy(aliases={"m": Alias(targets=[Target(model="large")])})
    aliased = Config(pools={"a": Pool(model="large", engine="echo")}, live=Live(policy))
    for config in (CONFIG, aliased):
        tries = [(body, f"multipart/form-data; boundary={name}") for name, body in (("x", FORM), ("yy", FORM_AGAIN))]
        sent = [
            from_openai(config, ANONYMOUS, TRANSCRIPTIONS, body, content_type=kind, task_id="k") for body, kind in tries
        ] + [from_json(config, ANONYMOUS, json(task_id="k", **in_envelope(body, kind))) for body, kind in tries]
        assert len({request.fingerprint for request in sent}) == 1
        assert (
            sent[0].fingerprint
            != from_openai(
                config, ANONYMOUS, TRANSCRIPTIONS, FORM.replace(b"a.wav", b"b.wav"), content_type=FORM_TYPE, task_id="k"
            ).fingerprint
        )


def test_an_envelope_whose_content_type_can_be_no_header_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        from_json(CONFIG, ANONYMOUS, json(**in_envelope(FORM, FORM_TYPE + '; y="\r\nA: b"')))
    assert caught.value.param == "content_type"


@pytest.mark.parametrize(
    ("route", "body", "content_type", "message"),
    [
        (CHAT, FORM, FORM_TYPE, "takes JSON"),
        (TRANSCRIPTIONS, FORM, "multipart/form-data", "expected multipart/form-data with its boundary"),
        (TRANSCRIPTIONS, FORM[:-6], FORM_TYPE, "ends before its last boundary"),
        (TRANSCRIPTIONS, b"{}", FORM_TYPE, "not valid multipart/form-data"),
        (TRANSCRIPTIONS, FORM.replace(b"\r\nm\r\n", b"\r\n\xff\r\n"), FORM_TYPE, "`model` is not UTF-8"),
        (TRANSCRIPTIONS, FORM.replace(b"\r\nm\r\n", b"\r\nother\r\n"), FORM_TYPE, "`other` does not exist"),
    ],
)
def test_a_form_that_is_none_is_refused(route: str, body: bytes, content_type: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        from_openai(CONFIG, ANONYMOUS, route, body, content_type=content_type)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"content_type": "text/plain", "body": "eA=="}, "content_type"),
        ({"content_type": FORM_TYPE, "body": "?"}, "body"),
        ({"content_type": FORM_TYPE, "body": {}}, "body"),
    ],
)
def test_an_envelope_whose_form_is_no_base64_is_refused(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        from_json(CONFIG, ANONYMOUS, json(route=TRANSCRIPTIONS, **asked))
    assert caught.value.param == param


def test_unknown_model_is_not_found() -> None:
    with pytest.raises(ModelNotFound) as caught:
        from_openai(CONFIG, ANONYMOUS, CHAT, b'{"model":"gpt-9"}')
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_body_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(BodyTooLarge, match="2048"):
        from_openai(CONFIG, ANONYMOUS, CHAT, b"x" * 2049)
    with pytest.raises(BodyTooLarge):
        from_json(CONFIG, ANONYMOUS, b"x" * 2049)
    with pytest.raises(BodyTooLarge):
        from_fields(CONFIG, ANONYMOUS, {"input_text": "x" * 2049})


# Nesting past the decoder's depth once raised RecursionError, and made the stream door read such an entry for ever.
DEEP = b"[" * 50_000 + b"]" * 50_000
NESTED = b'{"x":%b}' % DEEP


@pytest.mark.parametrize(
    "data",
    [
        b'{"model":"m","x":%b}' % DEEP,
        b'{"body":{"model":"m","x":%b}}' % DEEP,
        b'{"input_text":"x","metadata":{"x":%b}}' % DEEP,
    ],
    ids=["unknown field", "envelope", "metadata"],
)
def test_json_nested_without_end_is_refused_like_any_bad_json(data: bytes) -> None:
    """msgspec raises RecursionError; at the stream door an entry that raises comes again for ever."""
    roomy = Config(pools=CONFIG.pools)
    for door in (from_json, lambda config, payer, data: from_openai(config, payer, CHAT, data)):
        with pytest.raises(RequestError):
            door(roomy, ANONYMOUS, data)


def test_fields_nested_without_end_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        from_fields(Config(pools=CONFIG.pools), ANONYMOUS, {"input_text": "x", "context": NESTED.decode()})


# -- the envelope


def test_envelope_with_everything() -> None:
    body = b'{ "model":"m", "stream":true }'
    data = (
        b'{"body":%b,"route":"/v1/completions","lane":"batch","session":"s1","user":"u1","task_id":"o-1",'
        b'"reply_to":"orders","metadata":{"k":[1]}}' % body
    )
    request = from_json(CONFIG, ANONYMOUS, data)
    task = request.task
    assert request.body == body
    assert (task.route, task.lane, task.streamed) == (COMPLETIONS, Lane.BATCH, True)
    assert (task.session, task.user, task.task_id, task.reply_to) == ("s1", "u1", "o-1", "orders")
    assert bytes(task.metadata) == b'{"k":[1]}'


def test_envelope_with_nothing_but_a_body() -> None:
    task = from_json(CONFIG, ANONYMOUS, json(body={"model": "m"})).task
    assert (task.route, task.lane, task.session, task.reply_to, task.task_id) == (CHAT, Lane.NORMAL, "", "", "")
    assert task.metadata == NULL


ENVELOPE: dict[str, Any] = {"body": {"model": "m"}}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "body", "The field `body` is missing"),
        ({"body": {"model": 1}}, "body.model", "`body.model`: Expected `str | null`, got `int`"),
        ({"body": []}, "body", "`body`: Expected `object`, got `array`"),
        ({"body": {"model": "x"}}, "model", "`x` does not exist"),
        (ENVELOPE | {"route": "/v1/images"}, "route", "`route` is '/v1/images'; allowed: /v1/chat/completions"),
        (ENVELOPE | {"lane": "urgent"}, "lane", "`lane` is 'urgent'; allowed: interactive, normal, batch, high, low"),
        (ENVELOPE | {"priority": "urgent"}, "priority", "`priority` is 'urgent'; allowed: interactive"),
        (ENVELOPE | {"sesion": "x"}, "sesion", "The field `sesion` is unknown; did you mean `session`?"),
        (ENVELOPE | {"zzzzzz": "x"}, "zzzzzz", "The field `zzzzzz` is unknown; known: body, route"),
        (ENVELOPE | {"session": "a b"}, "session", "`session` is 'a b'; allowed are 1 to 128"),
        (ENVELOPE | {"reply_to": "a/b"}, "reply_to", "`reply_to` is 'a/b'"),
        (ENVELOPE | {"task_id": "x" * 129}, "task_id", "`task_id` is"),
        (ENVELOPE | {"task_id": "{x}"}, "task_id", "`task_id` is '{x}'"),
        (ENVELOPE | {"task_id": "x\n"}, "task_id", "`task_id` is"),
        (ENVELOPE | {"task_id": 7}, "task_id", "`task_id`: Expected `str`, got `int`"),
        (ENVELOPE | {"metadata": []}, "metadata", "`metadata`: Expected `object | null`, got `array`"),
        (ENVELOPE | {"expires_in": "5"}, "expires_in", "`expires_in`: Expected `float | null`, got `str`"),
    ],
)
def test_bad_envelope_is_refused_with_param_and_reason(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        from_json(CONFIG, ANONYMOUS, json(**fields))
    assert caught.value.param == param
    assert message in str(caught.value)
    assert caught.value.body.param == param


@pytest.mark.parametrize(
    ("word", "lane"),
    [
        ("interactive", Lane.INTERACTIVE),
        ("high", Lane.INTERACTIVE),
        ("normal", Lane.NORMAL),
        ("batch", Lane.BATCH),
        ("low", Lane.BATCH),
    ],
)
def test_words_for_lanes_in_either_field(word: str, lane: Lane) -> None:
    assert from_json(CONFIG, ANONYMOUS, json(**ENVELOPE, lane=word)).task.lane is lane
    assert from_json(CONFIG, ANONYMOUS, json(**ENVELOPE, priority=word)).task.lane is lane
    assert from_json(CONFIG, ANONYMOUS, json(input_text="x", priority=word)).task.lane is lane


def test_priority_goes_before_lane() -> None:
    assert from_json(CONFIG, ANONYMOUS, json(**ENVELOPE, lane="batch", priority="high")).task.lane is Lane.INTERACTIVE


# -- the shorthand


def test_shorthand_becomes_a_streamed_chat() -> None:
    request = from_json(CONFIG, ANONYMOUS, json(input_text="Hello", max_tokens=5, temperature=0.5))
    assert msgspec.json.decode(request.body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "temperature": 0.5,
    }
    assert (request.task.route, request.task.streamed, request.task.lane) == (CHAT, True, Lane.NORMAL)


def test_shorthand_is_delivered_to_its_session_or_else_to_its_user() -> None:
    assert from_json(CONFIG, ANONYMOUS, json(input_text="x", user_id="u1")).task.session == "u1"
    task = from_json(CONFIG, ANONYMOUS, json(input_text="x", user_id="u1", session="s1")).task
    assert (task.session, task.user) == ("s1", "u1")


def test_shorthand_carries_what_the_producer_wants_back() -> None:
    task = from_json(
        CONFIG, ANONYMOUS, json(input_text="x", template_id="default", context={"a": 1}, metadata={"b": 2})
    ).task
    assert (task.template_id, bytes(task.context), bytes(task.metadata)) == ("default", b'{"a":1}', b'{"b":2}')


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"template_id": "poem"}, "template_id", "There is no template 'poem'; known: default"),
        ({"template_id": ""}, "template_id", "There is no template ''"),
        ({"model": "x"}, "model", "`x` does not exist"),
        ({"max_tokens": "many"}, "max_tokens", "`max_tokens`: Expected `int | null`, got `str`"),
        ({"temperature": "hot"}, "temperature", "`temperature`: Expected `float | null`, got `str`"),
        ({"user_id": "a b"}, "user_id", "`user_id` is 'a b'"),
        ({"context": "x"}, "context", "`context`: Expected `object | null`, got `str`"),
        ({"body": {}}, "body", "The field `body` is unknown"),
        ({"max_token": 5}, "max_token", "did you mean `max_tokens`?"),
        ({"input_text": 5}, "input_text", "`input_text`: Expected `str`, got `int`"),
    ],
)
def test_bad_shorthand_is_refused_with_param_and_reason(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        from_json(CONFIG, ANONYMOUS, json(**({"input_text": "x"} | fields)))
    assert caught.value.param == param
    assert message in str(caught.value)


def test_model_may_be_left_out_only_where_there_is_one() -> None:
    with pytest.raises(InvalidRequest, match="served here: m, n") as caught:
        from_json(TWO, ANONYMOUS, json(input_text="x"))
    assert caught.value.param == "model"
    assert from_json(TWO, ANONYMOUS, json(input_text="x", model="n")).pool == "b"


# -- deadlines


@pytest.mark.parametrize("value", [5, 0.5, 86_400])
def test_a_task_may_say_for_how_long_it_is_worth_something(value: float) -> None:
    assert from_json(CONFIG, ANONYMOUS, json(**ENVELOPE, expires_in=value)).task.expires_in_s == value
    assert from_json(CONFIG, ANONYMOUS, json(input_text="x", expires_in=value)).task.expires_in_s == value
    assert from_fields(CONFIG, ANONYMOUS, {"input_text": "x", "expires_in": str(value)}).task.expires_in_s == value


def test_a_task_that_does_not_say_so_has_the_deadline_of_the_deployment() -> None:
    assert from_json(CONFIG, ANONYMOUS, json(**ENVELOPE)).task.expires_in_s == 0
    assert from_json(CONFIG, ANONYMOUS, json(**ENVELOPE, expires_in=None)).task.expires_in_s == 0
    assert from_openai(CONFIG, ANONYMOUS, CHAT, b'{"model":"m"}').task.expires_in_s == 0


@pytest.mark.parametrize("value", [0, -1, 86_400.5, 1e300])
def test_a_deadline_outside_the_limit_is_refused_with_value_and_limit(value: float) -> None:
    for fields in (ENVELOPE, {"input_text": "x"}):
        with pytest.raises(InvalidRequest) as caught:
            from_json(CONFIG, ANONYMOUS, json(**fields, expires_in=value))
        assert caught.value.param == "expires_in"
        assert str(caught.value) == (
            f"`expires_in` is {float(value)}; allowed: above 0, at most 86400 seconds (limits.waiting_s)"
        )


@pytest.mark.parametrize("text", ["nan", "inf", "-5", "0", "soon", "5s", ""])
def test_a_flat_field_that_is_no_duration_is_refused(text: str) -> None:
    """Not-a-number is neither below nor above any limit: compared the other way round, it was a deadline."""
    with pytest.raises(InvalidRequest) as caught:
        from_fields(CONFIG, ANONYMOUS, {"input_text": "x", "expires_in": text})
    assert caught.value.param == "expires_in"


# -- flat fields of the stream


def test_fields_are_read_as_the_shorthand_with_numbers_and_json_in_strings() -> None:
    fields = {
        "input_text": "Hello",
        "max_tokens": "5",
        "temperature": "0.5",
        "context": '{"a":1}',
        "reply_to": "orders",
    }
    request = from_fields(CONFIG, ANONYMOUS, fields)
    body = msgspec.json.decode(request.body)
    assert (body["max_tokens"], body["temperature"]) == (5, 0.5)
    assert (bytes(request.task.context), request.task.reply_to) == (b'{"a":1}', "orders")


def test_text_that_looks_like_a_number_stays_text() -> None:
    request = from_fields(CONFIG, ANONYMOUS, {"input_text": "42", "user_id": "7"})
    assert msgspec.json.decode(request.body)["messages"] == [{"role": "user", "content": "42"}]
    assert request.task.user == "7"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "task", "neither a field `task`"),
        ({"text": "x"}, "task", "neither a field `task`"),
        ({"input_text": "x", "max_tokens": "many"}, "max_tokens", "`max_tokens`: Expected `int | null`"),
        ({"input_text": "x", "metadata": "{"}, "metadata", "`metadata` is not valid JSON"),
        ({"input_text": "x", "metadata": "[]"}, "metadata", "`metadata`: Expected `object`"),
        ({"input_text": "x", "priority": "now"}, "priority", "`priority` is 'now'"),
        ({"input_text": "x", "template_id": "poem"}, "template_id", "There is no template 'poem'"),
        ({"input_text": "x", "inputtext": "y"}, "inputtext", "did you mean `input_text`?"),
    ],
)
def test_bad_fields_are_refused_with_param_and_reason(fields: dict[str, str], param: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        from_fields(CONFIG, ANONYMOUS, fields)
    assert caught.value.param == param
    assert message in str(caught.value)


# -- webhooks

TELLING = Config(
    pools=CONFIG.pools,
    live=Live(Policy(webhooks=Webhooks(endpoints={"orders": Endpoint(url="https://a.example/", secret_file="/s")}))),
)


def test_every_door_takes_a_webhook() -> None:
    body = b'{"model":"m","messages":[]}'
    asked = [
        from_openai(TELLING, ANONYMOUS, CHAT, body, wishes=Wishes(webhook="orders")),
        from_json(TELLING, ANONYMOUS, json(body=msgspec.Raw(body), webhook="orders")),
        from_json(TELLING, ANONYMOUS, json(input_text="Hi", webhook="orders")),
        from_fields(TELLING, ANONYMOUS, {"input_text": "Hi", "webhook": "orders"}),
    ]
    assert [request.task.webhook for request in asked] == ["orders"] * 4


def test_every_door_refuses_one_that_nobody_may_name() -> None:
    body = b'{"model":"m","messages":[]}'
    with pytest.raises(InvalidRequest) as caught:
        from_openai(TELLING, ANONYMOUS, CHAT, body, wishes=Wishes(webhook="https://a.example/"))
    assert caught.value.param == "x-headrace-webhook"
    for fields in ({"body": msgspec.Raw(body)}, {"input_text": "Hi"}):
        with pytest.raises(InvalidRequest) as caught:
            from_json(TELLING, ANONYMOUS, json(webhook="other", **fields))
        assert caught.value.param == "webhook"
