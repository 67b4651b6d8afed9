"""The engine port: what an engine must do to serve tasks."""

from collections.abc import AsyncGenerator
from typing import Protocol

from msgspec import Struct

from shared.errors import HeadraceError
from shared.files import Files


class Chunk(Struct, frozen=True):
    """One piece of a streamed answer."""

    data: bytes
    """Payload of one SSE `data:` frame, verbatim; [DONE] is not one."""
    tokens: tuple[int, ...] = ()
    """Ids made since the chunk before."""
    prompt: tuple[int, ...] = ()
    """Ids of the prompt, with the first chunk only."""


class Call(Struct, frozen=True, kw_only=True):
    """One request to an engine."""

    task_id: str
    route: str
    """Path of the OpenAI API, such as /v1/chat/completions."""
    body: bytes
    """As it came, untouched."""
    content_type: str = ""
    """Of the body, as HTTP says it; empty: JSON."""
    priority: int
    """0 interactive, 1 normal, 2 batch."""
    tenant: str = ""
    """Whose task it is."""
    files: Files | None = None
    """Where the tenant's files are read and kept, for engines whose tasks name some; None: nowhere."""
    published: tuple[Chunk, ...] = ()
    """What earlier attempts of the task published of a streamed answer: chunks 1 to n, in order, byte for byte."""


class Answer(Struct, frozen=True, kw_only=True):
    """The end of a call."""

    status: int
    """HTTP status; from 400 on the task has failed, and `body` is the error as the engine put it."""
    body: bytes
    """The whole response; empty when it was streamed."""
    content_type: str = ""
    """Of the body, as HTTP says it; empty: JSON."""
    retry_after_s: float = 0
    """What an engine over HTTP asks to be left alone for, with a refusal; 0: it did not say."""
    unreached: bool = False
    """Nothing could be asked: a failure that is not the task's. The engine has no slots then, until it is worth trying again."""


class Capacity(Struct, frozen=True, kw_only=True):
    slots: int
    running: int = 0
    waiting: int = 0
    """Inside the engine, behind those running."""
    kv_use: float = 0.0
    """Share of the KV cache in use, 0 to 1."""
    preemptions: int = 0
    """Requests put back to wait for room in the KV cache, since the start. Their prompts are computed again."""
    steps: int = 0
    """Turns of the engine's loop that were told of, since the start: while tasks run and it stands still, so do the figures."""


class EngineDead(HeadraceError):
    """The engine cannot run anything any more; its tasks must be handed back."""


class CannotResume(HeadraceError):
    """The answer cannot go on behind what is published; a call without `published` answers anew."""


class Engine(Protocol):
    name: str
    remote: bool
    """Over HTTP: it can be out of reach, and others may use it too. A circuit breaker watches its answers."""

    async def start(self) -> None:
        """Return when calls can be served. Raises: ConfigError, EngineDead."""

    def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        """Any number of Chunks (if the engine streamed), then exactly one Answer. Closing it aborts.

        With `published` the chunks are those that follow, as if one attempt had made all. Raises: EngineDead; CannotResume,
        and then nothing was yielded.
        """

    def capacity(self) -> Capacity: ...

    async def health(self) -> None:
        """Raises: EngineDead."""

    async def stop(self) -> None:
        """Leave no process behind."""
