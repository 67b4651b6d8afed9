"""Who may be told, with what signature: what a message may name, and what the configuration makes of it."""

import base64
import re
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from shared.clock import now_ms
from shared.config import Limits
from shared.errors import ConfigError, InvalidRequest
from shared.policy import Endpoint, Policy, Tenant, Webhooks
from shared.policy_file import parse
from shared.webhooks import check_webhook, destination, gone_mark, message_id, read_secrets, sign
from tests.support.receiver import SECRET, write_secret

POLICY = Policy(
    tenants={"acme": Tenant(webhook_secret_file="/run/acme"), "ann": Tenant()},
    webhooks=Webhooks(
        ports=[80, 443, 8443],
        endpoints={
            "orders": Endpoint(url="https://shop.example/orders", secret_file="/run/orders", tenants=["acme"]),
            "log": Endpoint(url="http://10.0.0.7:9000/", secret_file="/run/log"),
        },
    ),
)


# -- what a message may name


@pytest.mark.parametrize(
    ("tenant", "said"),
    [
        ("ann", ""),
        ("acme", "orders"),
        ("ann", "log"),
        ("acme", "https://a.example/x?y=z"),
        ("acme", "http://a.example:8443/"),
        ("acme", "http://8.8.8.8/"),
    ],
)
def test_an_endpoint_or_a_url_of_a_tenant_with_a_secret_is_taken(tenant: str, said: str) -> None:
    assert check_webhook(POLICY, tenant, said) == said


@pytest.mark.parametrize(
    ("tenant", "said", "why"),
    [
        ("acme", "order", "known: orders, log"),
        ("ann", "orders", "nor an endpoint that ann may name; known: log"),
        ("ann", "https://a.example/", "tenants.ann.webhook_secret_file"),
        ("acme", "ftp://a.example/", "expected http"),
        ("acme", "http://a.example:8080/", "its port is 8080; allowed: 80, 443, 8443 (webhooks.ports)"),
        ("acme", "http://127.0.0.1/", "not public (webhooks.allow_private)"),
        ("acme", "http://[::ffff:10.0.0.1]/", "not public"),
    ],
)
def test_anything_else_is_refused_with_the_field_and_the_remedy(tenant: str, said: str, why: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_webhook(POLICY, tenant, said, field="x-headrace-webhook")
    assert why in str(caught.value)
    assert "`x-headrace-webhook`" in str(caught.value)
    assert caught.value.param == "x-headrace-webhook"


# -- where it leads


def test_what_one_receiver_does_is_kept_apart_from_the_others() -> None:
    places = [
        destination(POLICY, "acme", said) for said in ("orders", "https://a.example/x", "https://a.example/y?t=secret")
    ]
    assert all(place is not None for place in places)
    named, first, second = (place for place in places if place is not None)
    assert named.receiver == "orders"
    assert first.receiver == second.receiver == "acme https://a.example"
    assert (named.crowd, first.crowd) == ("orders", "acme *")
    assert "secret" not in second.shown
    assert (named.secret_file, first.secret_file) == ("/run/orders", "/run/acme")
    assert len({gone_mark(place) for place in (named, first, second)}) == 3


@pytest.mark.parametrize(("tenant", "said"), [("acme", "gone"), ("ann", "orders"), ("ann", "https://a.example/")])
def test_what_the_configuration_lets_nobody_name_any_more_leads_nowhere(tenant: str, said: str) -> None:
    assert destination(POLICY, tenant, said) is None


# -- the signature


def test_the_public_library_finds_each_secret_of_the_file_good(tmp_path: Path) -> None:
    other = "whsec_" + base64.b64encode(b"x" * 24).decode()
    secrets = read_secrets(str(write_secret(tmp_path, SECRET, other)))
    headers = sign(secrets, "msg_1", now_ms() // 1000, '{"a":"é"}'.encode())
    for secret in (SECRET, other):
        assert Webhook(secret).verify('{"a":"é"}'.encode(), headers) == {"a": "é"}
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(b'{"a":"e"}', headers)


@pytest.mark.parametrize("held", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_%%%", base64.b64encode(b"x" * 32).decode()])
def test_a_file_without_a_good_secret_is_a_fault_that_shows_nothing_of_it(tmp_path: Path, held: str) -> None:
    path = write_secret(tmp_path, held)
    with pytest.raises(ConfigError) as caught:
        read_secrets(str(path))
    assert str(path) in str(caught.value)
    assert not held.removeprefix("whsec_") or held.removeprefix("whsec_") not in str(caught.value)


def test_a_file_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: FileNotFoundError"):
        read_secrets(str(tmp_path / "none"))


def test_an_id_follows_from_what_it_is_about_and_has_no_full_stop() -> None:
    assert message_id("smol.0.0.0.x", "1") == message_id("smol.0.0.0.x", "1") != message_id("smol.0.0.0.x", "2")
    assert "." not in message_id("smol.0.0.0.x", "1")


# -- headrace.toml


def read(text: str) -> tuple[Policy, list[str]]:
    faults: list[str] = []
    return parse(tomllib.loads(text), ["m"], Limits(), faults), faults


def test_rules_and_endpoints_stand_in_one_table() -> None:
    policy, faults = read(
        "[webhooks]\nallow_private = ['127.0.0.0/8']\nports = [443]\nbase_url = 'https://h.example'\n"
        "[webhooks.orders]\nurl = 'https://a.example/'\nsecret_file = '/s'\ntenants = ['acme']\n"
        "[tenants.acme]\nwebhook_secret_file = '/t'\n"
    )
    assert faults == []
    orders = Endpoint(url="https://a.example/", secret_file="/s", tenants=["acme"])
    assert policy.webhooks == Webhooks(
        allow_private=["127.0.0.0/8"], ports=[443], base_url="https://h.example", endpoints={"orders": orders}
    )
    assert policy.tenant("acme").webhook_secret_file == "/t"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("webhooks = 1", "webhooks is 1: expected a table, [webhooks]"),
        ("[webhooks]\nallow_private = ['10.0.0.1/8']", "webhooks.allow_private names '10.0.0.1/8': expected a network"),
        ("[webhooks]\nports = [0]", "webhooks.ports is [0]"),
        ("[webhooks]\nbase_url = 'h.example'", "webhooks.base_url is 'h.example': expected http"),
        ("[webhooks]\nallow_privat = []", "webhooks.allow_privat: neither a rule (allow_private, ports, base_url) nor a table"),
        ("[webhooks.'a b']\nurl = 'https://a.example'\nsecret_file = 's'", "webhooks.'a b': a name is"),
        ("[webhooks.a]\nurl = 'https://a.example'", "webhooks.a.secret_file is missing"),
        ("[webhooks.a]\nsecret_file = 's'", "webhooks.a.url is missing"),
        ("[webhooks.a]\nurl = 'https://u:word@a.example'\nsecret_file = 's'", "webhooks.a.url: it may hold neither a user"),
        ("[webhooks.a]\nurl = 'https://a.example'\nsecret_file = ''", "webhooks.a.secret_file is ''"),
        ("[webhooks.a]\nurl = 'https://a.example'\nsecret_file = 's'\ntenants = ['x']", "there is no [tenants.x]"),
    ],
)  # fmt: skip
def test_every_slip_is_a_fault_that_names_it(text: str, fault: str) -> None:
    _, faults = read(text)
    assert len(faults) == 1, faults
    assert fault in faults[0]
    assert "word" not in faults[0]


# -- the document


async def test_the_receiver_of_the_document_takes_what_is_signed_once_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    written: dict[str, Any] = {}
    exec(code.replace("/run/secrets/orders", str(write_secret(tmp_path))), written)
    body = b'{"type":"task.completed","data":{"id":"t1","metadata":{"order":7}}}'
    signed = sign(read_secrets(str(tmp_path / "secret")), "msg_1", now_ms() // 1000, body)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(written["app"]), base_url="http://shop") as sender:
        answers = [await sender.post("/headrace", content=sent, headers=signed) for sent in (body, body, body + b" ")]
    assert [answer.status_code for answer in answers] == [204, 204, 401]
    assert capsys.readouterr().out == "task.completed t1 {'order': 7}\n"
