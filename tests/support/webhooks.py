"""Deliveries in Redis, as the notifier's replicas find them."""

from pathlib import Path

from shared import keys
from shared.bus.client import Bus
from shared.bus.connection import Reply
from shared.bus.streams import ensure_group
from shared.config import Config
from shared.messages import Delivery
from shared.policy import Endpoint, Live, Policy, Tenant, Webhooks
from tests.support import tasks
from tests.support.receiver import write_secret

DELIVERY = Delivery(id="msg_1", event="batch.completed", to="orders", tenant="default", at_ms=1_700_000_000_000)


async def taken(bus: Bus, name: str = "dead-replica") -> list[bytes]:
    """The entries that a consumer has read, and says nothing about."""
    await ensure_group(bus, keys.WEBHOOKS, keys.SENDERS)
    reply: Reply = await bus.commands.call(
        "XREADGROUP", "GROUP", keys.SENDERS, name, "COUNT", 100, "STREAMS", keys.WEBHOOKS, ">"
    )
    return [entry for entry, _ in reply[0][1]] if reply else []


async def waiting(bus: Bus) -> list[tuple[bytes, float]]:
    found = await bus.commands.call("ZRANGE", keys.WEBHOOKS_LATER, 0, -1, "WITHSCORES")
    return [(delivery, float(due_ms)) for delivery, due_ms in zip(found[::2], found[1::2], strict=True)]


def config(folder: Path, *, allow_private: bool = True, **urls: str) -> Config:
    """A deployment whose endpoints are `urls`, all with one secret; so has the tenant acme."""
    secret_file = str(write_secret(folder))
    endpoints = {name: Endpoint(url=url, secret_file=secret_file) for name, url in urls.items()}
    rules = Webhooks(
        allow_private=["127.0.0.0/8", "::1/128"] if allow_private else [],
        ports=list(range(1, 65536)),
        endpoints=endpoints,
    )
    policy = Policy(webhooks=rules, tenants={"acme": Tenant(webhook_secret_file=secret_file)})
    return Config(pools=tasks.CONFIG.pools, live=Live(policy))
