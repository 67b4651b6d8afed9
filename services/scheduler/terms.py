"""What the scripts must know of tenants: weight, and how many tasks may run at once. Written to every shard as the policy says."""

from collections.abc import Sequence

from shared.bus.client import Bus
from shared.config import Config
from shared.keys import ShardKeys
from shared.policy import Policy


class Terms:
    def __init__(self, bus: Bus, config: Config, shards: Sequence[ShardKeys]) -> None:
        self._bus, self._config, self._shards = bus, config, shards

    async def write(self) -> None:
        """Raises: BusError. Replicas that read the same file write the same."""
        wanted = terms_of(self._config.policy)
        for shard in self._shards:
            flat = await self._bus.commands.call("HGETALL", shard.tenants)
            known = dict(zip(flat[::2], flat[1::2], strict=True))
            changed = {tenant: terms for tenant, terms in wanted.items() if known.get(tenant) != terms}
            if changed:
                await self._bus.commands.call(
                    "HSET", shard.tenants, *(part for item in changed.items() for part in item)
                )
            if gone := known.keys() - wanted.keys():
                await self._bus.commands.call("HDEL", shard.tenants, *gone)


def terms_of(policy: Policy) -> dict[bytes, bytes]:
    """`<weight> <most running>` of each tenant, as shared/lua/lib/fair.lua reads it."""
    return {name.encode(): f"{tenant.weight} {tenant.running}".encode() for name, tenant in policy.tenants.items()}
