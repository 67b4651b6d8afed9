"""Whether a Redis can be relied upon: what it says of itself, held against what Headrace needs."""

from collections.abc import Mapping
from typing import Any

from services.cli.failure import Failure
from shared.bus import check as durability
from shared.config import Safety
from shared.settings import mask

OLDEST = (7, 0)
CONNECT_S = 5.0

Info = Mapping[str, Any]


def faults(info: Info) -> list[str]:
    """Why this server cannot be used, each with its remedy."""
    found = []
    version = str(info.get("redis_version", "0"))
    if parse_version(version) < OLDEST:
        found.append(
            f"it is version {version}, Headrace needs 7.0 or newer: upgrade it, or unset REDIS_URL to use our own"
        )
    if info.get("redis_mode", "standalone") != "standalone" or info.get("cluster_enabled"):
        found.append(f"it runs in {info.get('redis_mode')} mode: name a plain server (cluster-enabled no)")
    if info.get("role", "master") != "master":
        master = f"{info.get('master_host')}:{info.get('master_port')}"
        found.append(f"it is a replica and takes no writes: name its master, {master}")
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        found.append(
            f"its maxmemory-policy is {policy}, which drops tasks when memory is short: "
            "`redis-cli CONFIG SET maxmemory-policy noeviction`, and the same in redis.conf"
        )
    return found


def warnings(info: Info) -> list[str]:
    """What works, but not as most would want."""
    if info.get("aof_enabled"):
        return []
    what = "Redis has appendonly off: when it stops, accepted tasks are lost"
    return [f"{what}. `redis-cli CONFIG SET appendonly yes`, and the same in redis.conf"]


def parse_version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def check(url: str, safety: Safety) -> list[str]:
    """The warnings about the Redis at `url`. Blocks for some round trips. Raises: Failure if it cannot be used."""
    info, appendfsync, has_waitaof = read_state(url)
    if found := faults(info) + durability.faults(safety, info, appendfsync, has_waitaof=has_waitaof):
        reasons = "\n".join(f"  - {fault}" for fault in found)
        raise Failure(f"the Redis at {mask(url)} cannot be used:\n{reasons}")
    return warnings(info) + durability.warnings(safety, info)


def read_state(url: str) -> tuple[Info, str, bool]:
    """INFO, `appendfsync` ('' if it may not be read), and whether there is WAITAOF. Raises: Failure."""
    from redis import Redis, RedisError  # a third of a second, spent while the services start

    try:
        with Redis.from_url(url, socket_connect_timeout=CONNECT_S, socket_timeout=CONNECT_S, protocol=2) as client:
            known = client.execute_command("COMMAND LIST", "FILTERBY", "PATTERN", "waitaof")
            return dict(client.info()), _appendfsync(client), bool(known)
    except (RedisError, OSError, ValueError) as error:
        raise Failure(
            f"no Redis answers at {mask(url)}: {error}\n"
            "Check REDIS_URL (redis://user:password@host:port/0), or unset it: Headrace then starts a Redis of its own."
        ) from None


def _appendfsync(client: Any) -> str:
    from redis import RedisError

    try:
        return str(client.config_get("appendfsync").get("appendfsync", ""))
    except RedisError:  # managed servers hide it
        return ""
