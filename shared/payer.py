"""Who asks, and so who pays: an API key over HTTP, the stream door's own name for other systems.

Only digests of keys are in the configuration, so whoever reads it has no key. Where keys are required, the tenant is the
key's and nothing that a message says changes it.
"""

import hashlib
import secrets
from hmac import compare_digest
from ipaddress import ip_address

from msgspec import Struct

from shared.errors import ConfigError, ProducerUnknown, Unauthorized
from shared.policy import Policy

KEY_PREFIX = "hr-"
"""Makes a key that lies about somewhere recognisable, to people and to scanners for secrets."""
KEY_BYTES = 32
DEFAULT_PRODUCER = "default"
"""Whose door the one without a name is, if the configuration names it."""


class Payer(Struct, frozen=True):
    tenant: str = "default"
    key: str = ""
    """Name of the API key."""
    named: bool = False
    """The tenant was proved, by a key or a door: no message may name another."""


ANONYMOUS = Payer()


def keys_required(policy: Policy, *, loopback: bool) -> bool:
    """Whether a caller must prove who it is. `loopback`: only programs of this machine reach the door."""
    if policy.keys_required is not None:
        return policy.keys_required
    return bool(policy.keys) or not loopback


def of_key(policy: Policy, presented: str) -> Payer:
    """Looks at every key for as long, whether it fits or not. Raises: Unauthorized."""
    digest = digest_of(presented)
    found = None
    for name, key in policy.keys.items():
        if compare_digest(key.sha256, digest):
            found = Payer(tenant=key.tenant, key=name, named=True)
    if found is None:
        raise Unauthorized(sent=bool(presented))
    return found


def of_producer(policy: Policy, name: str) -> Payer:
    """The payer of hr:requests:<name>; of hr:requests if `name` is empty. Raises: ProducerUnknown."""
    producer = policy.producers.get(name or DEFAULT_PRODUCER)
    if producer is not None:
        return Payer(tenant=producer.tenant, named=True)
    if name or keys_required(policy, loopback=True):
        raise ProducerUnknown(name)
    return ANONYMOUS


def check_door(policy: Policy, host: str) -> None:
    """Whether the HTTP door may open at `host`. Raises: ConfigError."""
    if policy.keys or not keys_required(policy, loopback=is_loopback(host)):
        return
    why = "keys_required is true" if policy.keys_required else f"the door listens on {host}, not only to this machine"
    raise ConfigError(
        f"{why}, and there is no API key that it could ask for. Make one with `headrace keys new --tenant NAME` and put "
        "what it prints into headrace.toml; or let everybody in who reaches the door: keys_required = false."
    )


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest_of(key: str) -> str:
    """What the configuration holds of a key. A key has 256 random bits, so a fast digest is as good as a slow one."""
    return hashlib.sha256(key.encode()).hexdigest()
