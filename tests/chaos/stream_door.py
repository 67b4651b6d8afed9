"""Another system: it has a Redis client and docs/stream-door.md. Its own link to Redis has faults, too."""

import asyncio
import contextlib
import random
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from shared.keys import REQUESTS, reply
from tests.chaos.history import History, Story

NAME, GROUP = "chaos", "mine"
REPEATS = 0.15
"""Share of entries that are sent once more, in a while."""


class StreamDoor:
    def __init__(self, history: History, url: str, model: str, dice: random.Random) -> None:
        self._history, self._model, self._dice = history, model, dice
        self._redis: Any = Redis.from_url(url, decode_responses=True, socket_timeout=5, socket_connect_timeout=5)
        self.stream = reply(NAME)
        self._repeats: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for repeat in self._repeats:
            repeat.cancel()
        await self._redis.aclose()

    async def ask(self, story: Story) -> None:
        ticket = story.ticket
        entry: dict[str, Any] = {
            "model": self._model,
            "input_text": ticket.text,
            "reply_to": NAME,
            "task_id": ticket.key,
            **ticket.wishes,
        }
        if ticket.expires_in_s:
            entry["expires_in"] = ticket.expires_in_s
        if ticket.max_tokens:
            entry |= {"max_tokens": ticket.max_tokens, "temperature": 0}
        await self._add(ticket.key, entry)
        self._history.note(ticket.key, "acknowledged")
        if self._dice.random() < REPEATS:
            repeat = asyncio.create_task(self._repeat(ticket.key, entry))
            self._repeats.add(repeat)
            repeat.add_done_callback(self._repeats.discard)
        await story.ended.wait()

    async def cancel(self, key: str) -> None:
        await self._add(key, {"cancel": key})

    async def _repeat(self, key: str, entry: dict[str, Any]) -> None:
        await asyncio.sleep(self._dice.uniform(0, 4))
        await self._add(key, entry)

    async def _add(self, key: str, entry: dict[str, Any]) -> None:
        while True:
            self._history.note(key, "submitted", entry="cancel" if "cancel" in entry else "task")
            try:
                await self._redis.xadd(REQUESTS, entry)
                return
            except (RedisError, OSError) as error:
                self._history.note(key, "broken", where="redis", why=repr(error))
            await asyncio.sleep(self._dice.uniform(0, 0.5))

    async def read(self) -> None:
        """Replies, with a group of our own, until cancelled."""
        while True:
            try:
                with contextlib.suppress(ResponseError):  # it exists
                    await self._redis.xgroup_create(self.stream, GROUP, "0", mkstream=True)
                await self._read_on()
            except (RedisError, OSError):
                await asyncio.sleep(self._dice.uniform(0, 0.5))

    async def _read_on(self) -> None:
        """First what was given to us before and not acknowledged, then what is new."""
        after = "0"
        while True:
            found = await self._redis.xreadgroup(GROUP, "one", {self.stream: after}, count=100, block=1000)
            entries = found[0][1] if found else []
            if after == "0" and not entries:
                after = ">"
            for entry, fields in entries:
                self._on_reply(fields)
                async with self._redis.pipeline(transaction=False) as pipe:
                    await pipe.xack(self.stream, GROUP, entry).xdel(self.stream, entry).execute()

    def _on_reply(self, fields: dict[str, str]) -> None:
        whole = msgspec.json.decode(fields["reply"])
        error = whole.get("error") or {}
        self._history.note(
            fields.get("task_id", "?"),
            "seen",
            where="reply",
            event=fields["event"],
            id=fields.get("id", ""),
            state=fields["status"],
            text=fields.get("text", ""),
            code=error.get("code"),
        )
