"""Whether a Redis can keep the durability asked for: what it says of itself, held against what each mode needs."""

from collections.abc import Mapping
from typing import Any

from shared.config import Safety

Info = Mapping[str, Any]
"""What INFO says, by name."""


def faults(safety: Safety, info: Info, appendfsync: str, *, has_waitaof: bool) -> list[str]:
    """Why a server cannot keep what `durability` promises, each with its remedy. `appendfsync` '': it may not be read."""
    found = []
    if safety.durability == "synced":
        if not int(info.get("aof_enabled", 0)):
            found.append("Redis has appendonly off: `redis-cli CONFIG SET appendonly yes`, and the same in redis.conf")
        if not has_waitaof and appendfsync != "always":
            upgrade = "this Redis has no WAITAOF: upgrade it to 7.2 or newer, or"
            found.append(f"{upgrade} `redis-cli CONFIG SET appendfsync always`, and the same in redis.conf")
        if not has_waitaof and safety.replicas:
            found.append(
                "this Redis cannot wait for the disks of replicas: upgrade it to 7.2 or newer, or set replicas = 0"
            )
        if has_waitaof and appendfsync == "no":
            found.append("appendfsync is no: `redis-cli CONFIG SET appendfsync everysec`, or always, and in redis.conf")
    return [f'durability is "{safety.durability}", but {fault}' for fault in found]


def warnings(safety: Safety, info: Info) -> list[str]:
    """What may mend itself: replicas come and go. Until they are back, submissions are answered with 503."""
    wanted = max(1, safety.replicas) if safety.durability == "replicated" else safety.replicas
    have = int(info.get("connected_slaves", 0))
    if safety.durability == "fast" or have >= wanted:
        return []
    missing = f"wants {wanted} replicas, and Redis has {have}: no task is accepted until they connect"
    return [f'durability = "{safety.durability}" {missing}']


def parse_info(text: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value for name, _, value in lines if name}
