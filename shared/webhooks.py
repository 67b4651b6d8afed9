"""Webhooks: where an event may go, and how it is signed (https://www.standardwebhooks.com).

A message names an endpoint of the configuration, or a URL if its tenant has a secret; it never holds a secret itself. What is
checked here is what can be known without asking anybody: a name is resolved, and its addresses checked, when it is sent to.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from shared import keys
from shared.bus.client import Bus
from shared.bus.streams import append
from shared.errors import ConfigError, InvalidRequest
from shared.messages import Delivery, encode
from shared.policy import Policy
from shared.urls import may_connect, url_fault

SECRET_PREFIX = "whsec_"  # noqa: S105 - what secrets begin with
SECRET_BYTES = range(24, 65)


class Destination(Struct, frozen=True, kw_only=True):
    url: str
    secret_file: str
    receiver: str
    """What is kept apart from other receivers, so that none delays another: an endpoint, or a tenant's URLs at one server."""
    crowd: str
    """Receivers that share room, because one hand makes as many as it likes: an endpoint alone, or all URLs of a tenant."""
    shown: str
    """For people. The URL of a message may hold secrets behind the server's name."""


def check_webhook(policy: Policy, tenant: str, said: str, *, field: str = "webhook") -> str:
    """Who a message wants told. Raises: InvalidRequest, naming what is wrong and what is allowed."""
    if not said or (said in policy.webhooks.endpoints and _may_name(policy, tenant, said)):
        return said
    if "://" not in said:
        known = ", ".join(name for name in policy.webhooks.endpoints if _may_name(policy, tenant, name)) or "none"
        raise InvalidRequest(
            f"`{field}` is {said[:80]!r}: neither a URL nor an endpoint that {tenant} may name; known: {known}",
            param=field,
        )
    if fault := url_fault(said) or _place_fault(policy, said):
        raise InvalidRequest(f"`{field}` is {said[:80]!r}: {fault}", param=field)
    if not policy.tenant(tenant).webhook_secret_file:
        raise InvalidRequest(
            f"`{field}` is a URL, and the tenant {tenant} has no secret to sign with (tenants.{tenant}.webhook_secret_file). "
            "Name an endpoint of the configuration, or have a secret put into it.",
            param=field,
        )
    return said


def destination(policy: Policy, tenant: str, to: str) -> Destination | None:
    """Where `to` leads as the configuration is now; None: nowhere any more."""
    endpoint = policy.webhooks.endpoints.get(to)
    if endpoint is not None and _may_name(policy, tenant, to):
        shown = f"the endpoint {to}"
        return Destination(url=endpoint.url, secret_file=endpoint.secret_file, receiver=to, crowd=to, shown=shown)
    secret_file = policy.tenant(tenant).webhook_secret_file
    if "://" not in to or not secret_file or _place_fault(policy, to):
        return None
    parts = urlsplit(to)
    server = f"{parts.scheme}://{parts.netloc}"
    receiver, crowd = f"{tenant} {server}", f"{tenant} *"
    return Destination(url=to, secret_file=secret_file, receiver=receiver, crowd=crowd, shown=server)


def message_id(*parts: str) -> str:
    """A `webhook-id` that follows from what it is about. It has no full stop: that separates what is signed."""
    return "msg_" + hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


async def announce(bus: Bus, delivery: Delivery) -> None:
    """Have it delivered, at least once. Raises: WrongKeyType, BusError."""
    await append(bus, keys.WEBHOOKS, {"delivery": encode(delivery)})


def gone_mark(destination: Destination) -> str:
    """What the place is remembered by when it has answered that it wants nothing any more."""
    return hashlib.blake2b(f"{destination.receiver}\0{destination.url}".encode(), digest_size=16).hexdigest()


def read_secrets(path: str) -> list[bytes]:
    """Read each time, so that an exchange needs no restart. Raises: ConfigError, which shows nothing of them."""
    try:
        lines = Path(path).read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the secret file {path} cannot be read: {type(error).__name__}") from None
    secrets = [_secret(line, path) for line in lines]
    if not secrets:
        raise ConfigError(f"the secret file {path} is empty: it must hold {SECRET_PREFIX}<base64>, one a line")
    return secrets


def sign(secrets: Sequence[bytes], id: str, at_s: int, body: bytes) -> dict[str, str]:
    """The three headers. `at_s`: of this try, Unix seconds; receivers refuse what is minutes old."""
    signed = f"{id}.{at_s}.".encode() + body
    digests = (hmac.digest(secret, signed, "sha256") for secret in secrets)
    signature = " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
    return {"webhook-id": id, "webhook-timestamp": str(at_s), "webhook-signature": signature}


def _secret(line: str, path: str) -> bytes:
    try:
        secret = base64.b64decode(line.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        secret = b""
    if not line.startswith(SECRET_PREFIX) or len(secret) not in SECRET_BYTES:
        raise ConfigError(
            f"the secret file {path} holds a line that is no secret: expected {SECRET_PREFIX}<base64 of "
            f"{SECRET_BYTES.start} to {SECRET_BYTES.stop - 1} bytes>"
        )
    return secret


def _may_name(policy: Policy, tenant: str, name: str) -> bool:
    tenants = policy.webhooks.endpoints[name].tenants
    return not tenants or tenant in tenants


def _place_fault(policy: Policy, url: str) -> str:
    """Why a message may not name this place."""
    parts, rules = urlsplit(url), policy.webhooks
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if port not in rules.ports:
        return f"its port is {port}; allowed: {', '.join(map(str, rules.ports))} (webhooks.ports)"
    try:
        address = ip_address(parts.hostname or "")
    except ValueError:  # a name
        return ""
    return "" if may_connect(address, rules.allow_private) else "its address is not public (webhooks.allow_private)"
