"""Requests by an alias or a template: what reaches the engine, what makes a repeat the same, and where else it may go."""

from typing import Any

import msgspec
import pytest

from shared.config import Config, Pool
from shared.errors import InvalidRequest, RequestError
from shared.lifecycle import Lane
from shared.messages import NULL
from shared.payer import ANONYMOUS, Payer
from shared.policy import Alias, CacheRule, Live, Message, Policy, Shadow, Target, Template
from shared.request import CHAT, COMPLETIONS, Request, again, from_fields, from_json, from_openai, on_pool, ways

POOLS = {name: Pool(model=f"model-{name}", engine="echo") for name in "abc"}
BODY = b'{ "model": "chat", "n":1.0,  "messages": [ {"role":"user","content":"\\u00e9 "} ], "model2" : "chat" }'


def config(**policy: Any) -> Config:
    return Config(pools=POOLS, live=Live(Policy(**policy)))


def alias(*models: str, **more: Any) -> Config:
    targets = [Target(model=f"model-{model}") for model in models]
    return config(aliases={"chat": Alias(targets=targets, **more)})


def template(source: str = "Say {{ input_text }} to {{ context.who }}.", **more: Any) -> Config:
    messages = [Message(role="system", content="Be brief."), Message(role="user", content=source)]
    return config(templates={"greet": Template(messages=messages, **more)})


def ask(config: Config, body: bytes = BODY, **more: Any) -> Request:
    return from_openai(config, ANONYMOUS, CHAT, body, **more)


def post(config: Config, **fields: Any) -> Request:
    return from_json(config, ANONYMOUS, msgspec.json.encode(fields))


def body_of(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(request.body)
    return body


# -- an alias


def test_the_alias_is_replaced_and_every_other_value_is_as_it_came() -> None:
    request = ask(alias("a"))
    assert request.body == (
        b'{"model":"model-a","n":1.0,"messages":[ {"role":"user","content":"\\u00e9 "} ],"model2":"chat"}'
    )
    assert request.fingerprint == BODY
    assert (request.pool, request.task.model, request.task.alias, request.task.variant) == (
        "a",
        "model-a",
        "chat",
        "model-a",
    )


def test_a_model_by_its_own_name_is_not_touched() -> None:
    body = BODY.replace(b'"chat"', b'"model-b"', 1)
    request = ask(alias("a"), body)
    assert (request.body, request.pool, request.fingerprint) == (body, "b", b"")
    assert (request.task.alias, request.task.variant, request.fallbacks, request.shadow) == ("", "", (), None)


def test_every_door_takes_an_alias() -> None:
    split = alias("a")
    for request in (
        ask(split),
        post(split, body={"model": "chat", "prompt": "x"}, route=COMPLETIONS),
        post(split, input_text="x", model="chat"),
        from_fields(split, ANONYMOUS, {"input_text": "x", "model": "chat"}),
    ):
        assert (request.task.model, request.task.alias, request.pool) == ("model-a", "chat", "a")
        assert body_of(request)["model"] == "model-a"


def bodies(user: str) -> bytes:
    return msgspec.json.encode({"model": "chat", "messages": [], "user": user})


def test_a_user_gets_the_same_model_at_every_door() -> None:
    split = alias("a", "b")
    for user in map(str, range(50)):
        chosen = {
            ask(split, bodies(user)).pool,
            post(split, body=msgspec.Raw(bodies(user))).pool,
            post(split, body={"model": "chat"}, user=user).pool,
            post(split, body=msgspec.Raw(bodies("other")), user=user, session="s").pool,
            post(split, input_text="x", model="chat", user_id=user, session="s").pool,
            from_fields(split, ANONYMOUS, {"input_text": "x", "model": "chat", "user_id": user}).pool,
        }
        assert len(chosen) == 1


@pytest.mark.parametrize("field", ["session", "task_id"])
def test_without_a_user_a_session_or_a_key_decides(field: str) -> None:
    split = alias("a", "b")
    for name in map(str, range(50)):
        assert len({post(split, input_text="x", model="chat", **{field: name}).pool for _ in range(5)}) == 1
    assert len({post(split, input_text="x", model="chat").pool for _ in range(100)}) == 2


def test_an_entry_that_is_read_again_goes_the_same_way() -> None:
    split = alias("a", "b")
    fields = {"input_text": "x", "model": "chat"}
    data = msgspec.json.encode(fields)
    for origin in map(str, range(50)):
        flat = {from_fields(split, ANONYMOUS, fields, origin=origin).pool for _ in range(5)}
        assert flat == {from_json(split, ANONYMOUS, data, origin=origin).pool for _ in range(5)}
        assert len(flat) == 1


@pytest.mark.parametrize("user", [7, None, ["x"], {"deep": [1]}])
def test_a_user_that_is_no_text_is_the_engines_to_refuse(user: object) -> None:
    assert ask(alias("a"), msgspec.json.encode({"model": "chat", "user": user})).task.user == ""


# -- fallbacks and shadow


def test_fallbacks_are_the_same_request_for_the_other_pools() -> None:
    request = ask(alias("a", fallbacks=["model-b", "model-c"], shadow=Shadow(model="model-b")), task_id="k-1")
    assert [way.pool for way in ways(request)] == ["a", "b", "c"]
    for way in request.fallbacks:
        model = POOLS[way.pool].model
        assert body_of(way) == {**body_of(request), "model": model}
        assert (way.task.model, way.task.variant, way.task.alias, way.task.task_id) == (model, model, "chat", "k-1")
        assert (way.fingerprint, way.fallbacks, way.shadow) == (BODY, (), None)
        assert (way.tokens_in, way.tokens_out) == (request.tokens_in, request.tokens_out)


def test_a_shadow_has_the_body_and_nothing_that_leads_to_its_answer() -> None:
    split = alias("a", shadow=Shadow(model="model-b", tenant="trial"))
    asked = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "stream": True}
    more = {"session": "s", "reply_to": "r", "task_id": "k", "user": "u", "metadata": {"a": 1}, "lane": "high"}
    shadow = post(split, body=asked, **more).shadow
    assert shadow is not None
    task = shadow.task
    assert body_of(shadow) == {**asked, "model": "model-b"}
    assert (shadow.pool, task.model, task.alias, task.tenant, task.lane) == (
        "b",
        "model-b",
        "chat",
        "trial",
        Lane.BATCH,
    )
    assert (task.session, task.reply_to, task.task_id, task.metadata, task.attached) == ("", "", "", NULL, False)
    assert (shadow.cache, shadow.fallbacks, shadow.shadow) == (None, (), None)


def test_a_shadow_is_charged_to_nobodys_key() -> None:
    split = alias("a", shadow=Shadow(model="model-b"))
    shadow = from_openai(split, Payer(tenant="acme", key="k1", named=True), CHAT, BODY).shadow
    assert shadow is not None
    assert (shadow.task.tenant, shadow.task.key) == ("shadow", "")


def test_each_way_has_the_cache_key_of_its_own_model() -> None:
    split = Config(
        pools=POOLS,
        live=Live(
            Policy(
                aliases={"chat": Alias(targets=[Target(model="model-a")], fallbacks=["model-b"])},
                cache=[CacheRule(ttl_s=60, when="always")],
            )
        ),
    )
    first, second = (way.cache for way in ways(ask(split)))
    assert first is not None
    assert second is not None
    assert first.digest != second.digest
    direct = ask(split, BODY.replace(b'"chat"', b'"model-a"', 1)).cache
    assert direct == first


# -- a repeat


def test_a_repeat_goes_to_the_pool_that_the_first_submission_chose() -> None:
    split = alias("a", fallbacks=["model-b"])
    request = ask(split)
    assert on_pool(split, request, "a") is request
    assert on_pool(split, request, "b") is request.fallbacks[0]
    moved = on_pool(split, request, "c")  # the alias led there when it was submitted first
    assert (moved.pool, moved.task.model, moved.fingerprint, body_of(moved)["model"]) == (
        "c",
        "model-c",
        BODY,
        "model-c",
    )


def test_a_repeat_is_the_same_whatever_the_alias_has_become() -> None:
    assert ask(alias("a")).fingerprint == ask(alias("b")).fingerprint == BODY


def test_a_stored_task_goes_where_it_was_whatever_the_alias_has_become() -> None:
    request = ask(alias("a"))
    stored = again(alias("b"), request.task, request.body, request.pool)
    assert (stored.task, stored.body, stored.pool) == (request.task, request.body, "a")
    assert (stored.tokens_in, stored.fallbacks, stored.shadow) == (request.tokens_in, (), None)


def test_a_key_that_came_beside_the_request_is_its_task_id_on_every_way() -> None:
    split = alias("a", fallbacks=["model-b"])
    data = msgspec.json.encode({"input_text": "x", "model": "chat", "task_id": "k"})
    assert {way.task.task_id for way in ways(from_json(split, ANONYMOUS, data, key="k"))} == {"k"}
    bare = msgspec.json.encode({"body": {"model": "chat"}})
    assert {way.task.task_id for way in ways(from_json(split, ANONYMOUS, bare, key="k"))} == {"k"}
    with pytest.raises(InvalidRequest, match="`task_id` and the header Idempotency-Key differ"):
        from_json(split, ANONYMOUS, data, key="other")
    with pytest.raises(InvalidRequest, match="`task_id` is 'a b'"):
        from_json(split, ANONYMOUS, bare, key="a b")


# -- a template


def test_a_template_writes_the_messages_at_every_door() -> None:
    greet = template()
    said: dict[str, Any] = {
        "input_text": "hello",
        "template_id": "greet",
        "model": "model-a",
        "context": {"who": "Ann"},
    }
    flat = {**said, "context": '{"who":"Ann"}'}
    for request in (post(greet, **said), from_fields(greet, ANONYMOUS, flat)):
        assert body_of(request) == {
            "model": "model-a",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Say hello to Ann."},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        assert (request.task.template_id, request.task.streamed) == ("greet", True)


def test_a_template_has_a_model_and_options_and_the_task_goes_first() -> None:
    greet = template("x", model="model-b", options={"temperature": 0.1, "top_p": 0.5, "max_tokens": 9})
    body = body_of(post(greet, input_text="", template_id="greet", temperature=0.7))
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("model-b", 0.7, 0.5, 9)
    assert body_of(post(greet, input_text="", template_id="greet", model="model-c"))["model"] == "model-c"


def test_a_template_may_name_an_alias() -> None:
    messages = [Message(role="user", content="x")]
    both = config(
        templates={"greet": Template(messages=messages, model="chat")},
        aliases={"chat": Alias(targets=[Target(model="model-c")])},
    )
    request = post(both, input_text="", template_id="greet")
    assert (request.task.model, request.task.alias, body_of(request)["model"]) == ("model-c", "chat", "model-c")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"template_id": "greeet"}, "template_id", "There is no template 'greeet'; did you mean `greet`?"),
        (
            {"template_id": "greet"},
            "context.who",
            "The template 'greet' cannot be filled in: `context.who` is missing.",
        ),
    ],
)
def test_a_template_that_is_unknown_or_lacks_a_word_is_refused(
    fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        post(template(), input_text="x", model="model-a", **fields)
    assert caught.value.param == param
    assert message in str(caught.value)


def test_a_template_without_a_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="The field `input_text` is missing"):
        post(template(), template_id="greet")


def test_a_text_that_a_template_makes_too_large_is_refused() -> None:
    greet = template("{% for i in range(99999) %}{{ input_text }}{% endfor %}")
    with pytest.raises(RequestError) as caught:
        post(greet, input_text="x" * 100, template_id="greet", model="model-a")
    assert caught.value.status == 413


def test_a_repeat_by_a_template_is_the_same_whatever_the_template_has_become() -> None:
    def print_of(greet: Config, text: str = "hello", who: str = "Ann") -> bytes:
        asked = post(greet, input_text=text, template_id="greet", model="model-a", context={"who": who})
        return asked.fingerprint

    assert print_of(template()) == print_of(template("Greet {{ input_text }}")) != b""
    assert len({print_of(template()), print_of(template(), "bye"), print_of(template(), who="Bob")}) == 3


def test_a_missing_model_is_refused_with_the_aliases_too() -> None:
    with pytest.raises(InvalidRequest, match="served here: model-a, model-b, model-c, chat"):
        post(alias("a"), input_text="x")


def test_a_repeat_whose_pool_is_not_configured_any_more_is_the_request_itself() -> None:
    request = ask(alias("a"))
    assert on_pool(alias("a"), request, "gone") is request
