"""Who pays: keys and doors prove a tenant, and where neither is asked for anybody is the default one."""

import re
import tomllib

import pytest

from shared.errors import ConfigError, ProducerUnknown, Unauthorized
from shared.payer import (
    ANONYMOUS,
    Payer,
    check_door,
    digest_of,
    is_loopback,
    keys_required,
    new_key,
    of_key,
    of_producer,
)
from shared.policy import Key, Policy, Producer

SECRET, OTHER = new_key(), new_key()
KEYS = {
    "web": Key(tenant="acme", sha256=digest_of(SECRET)),
    "batch": Key(tenant="beta", sha256=digest_of(OTHER)),
}
POLICY = Policy(keys=KEYS, producers={"shop": Producer(tenant="acme")})


def test_a_key_proves_its_tenant() -> None:
    assert of_key(POLICY, SECRET) == Payer(tenant="acme", key="web", named=True)
    assert of_key(POLICY, OTHER) == Payer(tenant="beta", key="batch", named=True)


@pytest.mark.parametrize(
    "presented", ["", "hr-", SECRET[:-1], SECRET + "x", SECRET.upper(), digest_of(SECRET), "schlüssel"]
)
def test_anything_else_is_refused_with_a_remedy(presented: str) -> None:
    with pytest.raises(Unauthorized, match="Authorization: Bearer") as caught:
        of_key(POLICY, presented)
    assert (caught.value.status, caught.value.body.code) == (401, "invalid_api_key")
    assert not presented or presented not in str(caught.value), "what was sent may be somebody's key"


def test_a_door_of_its_own_proves_its_tenant() -> None:
    assert of_producer(POLICY, "shop") == Payer(tenant="acme", named=True)
    with pytest.raises(ProducerUnknown, match="other"):
        of_producer(POLICY, "other")


def test_the_door_without_a_name_belongs_to_the_default_producer_or_to_anybody() -> None:
    assert of_producer(Policy(), "") == ANONYMOUS
    assert of_producer(Policy(producers={"default": Producer(tenant="acme")}, keys=KEYS), "").tenant == "acme"


@pytest.mark.parametrize("policy", [POLICY, Policy(keys_required=True)], ids=["keys", "required"])
def test_where_keys_are_required_the_door_without_a_name_takes_nothing(policy: Policy) -> None:
    with pytest.raises(ProducerUnknown, match=re.escape("[producers.default]")) as caught:
        of_producer(policy, "")
    assert (caught.value.status, caught.value.body.code) == (403, "producer_unknown")


@pytest.mark.parametrize(
    ("policy", "loopback", "required"),
    [
        (Policy(), True, False),
        (Policy(), False, True),
        (POLICY, True, True),
        (POLICY, False, True),
        (Policy(keys_required=False), False, False),
        (Policy(keys=KEYS, keys_required=False), False, False),
        (Policy(keys_required=True), True, True),
    ],
)
def test_keys_are_required_where_there_are_any_or_others_can_reach_the_door(
    policy: Policy, loopback: bool, required: bool
) -> None:
    assert keys_required(policy, loopback=loopback) is required


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "", "10.0.0.7", "ingress.example")],
)
def test_only_addresses_of_this_machine_are_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_door_that_others_reach_needs_keys_or_a_word_that_it_needs_none() -> None:
    with pytest.raises(ConfigError, match=r"headrace keys new.*keys_required = false"):
        check_door(Policy(), "0.0.0.0")
    with pytest.raises(ConfigError, match="keys_required is true"):
        check_door(Policy(keys_required=True), "127.0.0.1")
    check_door(Policy(), "127.0.0.1")
    check_door(Policy(keys_required=False), "0.0.0.0")
    check_door(POLICY, "0.0.0.0")


def test_keys_are_made_at_random_and_need_no_quoting() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    for key in made:
        assert re.fullmatch(r"hr-[A-Za-z0-9_-]{43}", key)
        assert tomllib.loads(f'sha256 = "{digest_of(key)}"')["sha256"] == digest_of(key)
