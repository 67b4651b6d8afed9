"""What the services published, read from Redis past all links, and each task's hash as it was when it ended."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import Struct, field
from redis.exceptions import RedisError

from shared.keys import keys_of
from tests.chaos.cluster import Cluster

Hash = dict[str, str]
PAGE = 500


class Trace(Struct):
    """One task, as the bus told of it."""

    at_ms: int = 0
    """Of its last event, on Redis' clock."""
    worker: str = ""
    """That has it; empty: none that the bus knows of."""
    text: str = ""
    last: int = 0
    ends: list[dict[str, Any]] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    found: Hash | None = None
    """Its hash after its end."""

    def apply(self, at_ms: int, event: dict[str, Any]) -> None:
        self.at_ms = at_ms
        kind = event["type"].removesuffix(".v1")
        if kind == "chunks":
            self._on_chunks(event)
        else:
            words = ("attempt", "worker", "last", "state", "why")
            said = " ".join(f"{word}={event[word]}" for word in words if word in event)
            self.story.append(f"{at_ms} {kind} {said}")
        if self.ends and kind != "finished":
            self.faults.append(f"{kind} after the end")
        if kind == "started":
            self.worker = event["worker"]
        elif kind == "reset":
            self.text, self.last = "", 0
        elif kind == "resumed" and event["last"] != self.last:
            self.faults.append(f"resumed behind chunk {event['last']}, published were {self.last}")
        elif kind == "finished":
            self.worker = ""
            self.ends.append(event)

    def _on_chunks(self, event: dict[str, Any]) -> None:
        if event["first"] != self.last + 1:
            self.faults.append(f"chunks {event['first']} to {event['last']} after {self.last}")
        self.last = event["last"]
        self.text += "".join(_text(chunk) for chunk in event["chunks"])


class Witness:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.traces: dict[str, Trace] = {}

    def streams(self) -> Iterator[str]:
        for shard in self._cluster.shards():
            yield from map(shard.bus, range(self._cluster.config.pools[shard.pool].partitions))

    async def run(self, on_event: Callable[[str, int], None]) -> None:
        """Until cancelled. A Redis that is away is waited for. `on_event` gets the id and Redis' time of each event."""
        last = dict.fromkeys(self.streams(), "0")
        while True:
            try:
                found = await self._cluster.redis.xread(last, count=PAGE, block=500)
            except (RedisError, OSError):
                await asyncio.sleep(0.1)
                continue
            ended = []
            for stream, entries in found:
                last[stream] = entries[-1][0]
                for entry, fields in entries:
                    on_event(fields.get("t", ""), int(entry.partition("-")[0]))
                    if self._on_entry(entry, fields).ends:
                        ended.append(fields["t"])
            if ended:
                await self._look_at(ended)

    def _on_entry(self, entry: str, fields: Hash) -> Trace:
        trace = self.traces.setdefault(fields.get("t", ""), Trace())
        try:
            trace.apply(int(entry.partition("-")[0]), msgspec.json.decode(fields["e"]))
        except (msgspec.DecodeError, KeyError) as error:
            trace.faults.append(f"{entry} is no event: {error!r}")
        return trace

    async def _look_at(self, ids: list[str]) -> None:
        for id, found in zip(ids, await self.hashes(ids), strict=True):
            if found:
                self.traces[id].found = found

    async def hashes(self, ids: list[str]) -> list[Hash]:
        for _ in range(600):
            with contextlib.suppress(RedisError, OSError):
                async with self._cluster.redis.pipeline(transaction=False) as pipe:
                    for id in ids:
                        pipe.hgetall(keys_of(id)[0].task(id))
                    found: list[Hash] = await pipe.execute()
                    return found
            await asyncio.sleep(0.1)
        raise AssertionError("Redis did not come back within a minute")

    def held_by(self, worker: str) -> list[str]:
        return [id for id, trace in self.traces.items() if worker and trace.worker == worker]

    def unfinished(self) -> list[str]:
        return [id for id, trace in self.traces.items() if not trace.ends]


def _text(chunk: dict[str, Any]) -> str:
    return "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in chunk.get("choices", ()))
