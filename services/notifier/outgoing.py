"""What waits to be sent to one client. Merged while it waits, and bounded: a client too slow for it is let go."""

import asyncio

import msgspec

from services.notifier.frames import Data, OfTask, Outbound, Status
from shared.errors import HeadraceError

MOST_BYTES = 1024 * 1024
"""Of waiting text and chunks: minutes of tokens for one reader. More means that nobody reads; the cursor stays with the client."""


class TooSlow(HeadraceError):
    """The client does not read what it asked for."""


class Outgoing:
    def __init__(self) -> None:
        self._messages: list[Outbound] = []
        self._bytes = 0
        self._places: dict[tuple[int, str], Status] = {}
        """By task: a place in line that waits to be told; a later one takes its stead."""
        self._news = asyncio.Event()

    def push(self, message: Outbound) -> None:
        if isinstance(message, Data):
            self._bytes += len(message.d or "") + sum(len(bytes(chunk)) for chunk in message.chunks or ())
            if self._messages and (merged := merge(self._messages[-1], message)) is not None:
                self._messages[-1] = merged
                return
        elif isinstance(message, OfTask) and self._replaces(message):
            return
        self._messages.append(message)
        self._news.set()

    async def take(self) -> list[Outbound]:
        """Everything that waits, as soon as there is something. Raises: TooSlow if too much has gathered."""
        while not self._messages:
            self._news.clear()
            await self._news.wait()
        if self._bytes > MOST_BYTES:
            raise TooSlow
        messages, self._messages, self._bytes = self._messages, [], 0
        self._places.clear()
        return messages

    def _replaces(self, message: OfTask) -> bool:
        """A place in line of which an older one waits still: however long a client reads nothing, it is one message."""
        key = message.id, message.task
        waiting = self._places.pop(key, None)
        if not isinstance(message, Status) or "why" not in message.info:
            return False
        self._places[key] = waiting or message
        if waiting is not None:
            waiting.info = message.info
        return waiting is not None


def merge(before: Outbound, data: Data) -> Data | None:
    """Two ranges that join, as one; None if they do not."""
    if not isinstance(before, Data) or (before.id, before.task, before.i) != (data.id, data.task, data.i):
        return None
    if before.n + 1 != data.f:
        return None
    if before.chunks is not None and data.chunks is not None:
        return msgspec.structs.replace(before, n=data.n, c=data.c, chunks=before.chunks + data.chunks)
    return msgspec.structs.replace(before, n=data.n, c=data.c, d=(before.d or "") + (data.d or ""))
