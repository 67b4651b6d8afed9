"""Everything that passes between services, in the order of a task's life.

All of it is JSON, so that an operator reads it with redis-cli and a program without our code. Schemas evolve by four rules:
fields are never removed or retyped, new fields have defaults, a changed meaning is a new tag, and the golden bytes in
tests/architecture are decoded for ever.

    Task      a door -> hash field `spec` (with the body beside it) -> inference      what was asked
    Pending   submit  -> bus                                                          a session learns of a new task
    Started   start   -> bus                                                          an attempt runs on a worker
    Reset     rebase  -> bus, log                                                     forget the partial output
    Resumed   rebase  -> bus, log                                                     another worker goes on with it
    Chunks    emit    -> bus, log                                                     a range of the engine's chunks
    Finished  finish, cancel, due, release, reap -> bus, log                          the end, exactly once
    Reply     outbox reader -> hr:reply:<name>                                        the result for another system
    Delivery  outbox reader, requeue -> hr:{webhooks}                                 an event for a webhook
"""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from shared.errors import UNDECODABLE, ErrorBody
from shared.lifecycle import Lane, State

JSON = "application/json"

NULL = Raw(b"null")
"""No value, in a field that holds JSON as it came: msgspec has no optional Raw."""


class Message(Struct, frozen=True):
    pass


class Response(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request to the Responses API says of the response as a thing that is kept: the engine knows nothing of it."""

    background: bool = False
    """It goes on without its client."""
    previous: str = ""
    """Id of the response that it follows; what was said there stands in the body."""
    kept: bool = True
    """It may be asked for again."""


class Stored(Struct, frozen=True, kw_only=True):
    """An object of a task: its body or its answer, too large for Redis (shared/large.py)."""

    name: str
    bytes: int


class Task(Message, frozen=True, kw_only=True, omit_defaults=True, tag="task.v1"):
    """What was asked. Producer: the doors, by the submit script. Reader: inference, notifier, ingress."""

    route: str
    """The path of the engine's API that the body belongs to."""
    model: str
    """What serves it; if the body names none, that of the only pool."""
    tenant: str
    lane: Lane = Lane.NORMAL
    streamed: bool = False
    """The body asks for a stream: the engine makes chunks."""
    session: str = ""
    user: str = ""
    reply_to: str = ""
    """Name of the reply stream, `hr:reply:<name>`; empty: none."""
    task_id: str = ""
    """The producer's own id: an idempotency key, given back in replies, never our id."""
    expires_in_s: float = 0.0
    """From submission to the deadline; 0: the longest that the deployment allows."""
    attached: bool = False
    """Worth something only while its client waits for it: cancelled when nobody does."""
    requeued_from: str = ""
    """The dead task that this one repeats."""
    key: str = ""
    """Name of the API key that asked; its own limits hold beside those of the tenant."""
    alias: str = ""
    """What the client called the model, when that was an alias."""
    variant: str = ""
    """The branch of the alias that serves it."""
    shadow_of: str = ""
    """The task that this one repeats for comparison; nobody gets its answer."""
    not_before_ms: int = 0
    """Unix ms; it does not start earlier. 0: at once."""
    waits: bool = False
    """Over its tenant's limits it waits, instead of being refused."""
    cache: str = ""
    """As asked for: `off`, `refresh`, or seconds to keep the answer; empty: as the rules say."""
    webhook: str = ""
    """Who is told of its end: an endpoint of the configuration, or a URL."""
    template_id: str = ""
    context: Raw = NULL
    metadata: Raw = NULL
    """Objects of the producer: carried with the task and given back."""
    content_type: str = ""
    """Of the body, as HTTP says it; empty: JSON."""
    response: Response | None = None
    """With requests to the Responses API only."""
    shared: bool = False
    """Its answer may be given to other tasks (shared/cache.py), which outlive it: so that stays in Redis."""
    stored: Stored | None = None
    """The body, if it is not beside this."""


class Pending(Message, frozen=True, kw_only=True, omit_defaults=True, tag="pending.v1"):
    """Bus only, and only for tasks of a session. A repeat is harmless: it says nothing that the hash does not."""

    model: str
    lane: Lane


class Started(Message, frozen=True, kw_only=True, omit_defaults=True, tag="started.v1"):
    """Bus only. Written by the start script."""

    attempt: int
    worker: str


class Reset(Message, frozen=True, kw_only=True, omit_defaults=True, tag="reset.v1"):
    """An attempt starts over after output of the one before was published. n counts from 1 again."""

    attempt: int
    why: str


class Resumed(Message, frozen=True, kw_only=True, omit_defaults=True, tag="resumed.v1"):
    """An attempt goes on behind chunk `last` of those before it."""

    attempt: int
    last: int


class Chunks(Message, frozen=True, kw_only=True, omit_defaults=True, tag="chunks.v1"):
    """The chunks `first`..`last` of an attempt, as the engine made them."""

    attempt: int
    first: int
    last: int
    chunks: list[Raw]

    def after(self, last: int) -> "Chunks":
        """Without the chunks up to `last`."""
        if self.first > last:
            return self
        return Chunks(attempt=self.attempt, first=last + 1, last=self.last, chunks=self.chunks[last + 1 - self.first :])


class Finished(Message, frozen=True, kw_only=True, omit_defaults=True, tag="finished.v1"):
    """The terminal transition. `last` is the number of chunks of the attempt that ended."""

    attempt: int
    last: int
    state: State
    status: int
    """HTTP status of the engine's answer, or of the refusal."""
    streamed: bool = False
    content_type: str = ""
    """Of the result, as HTTP says it; empty: JSON. cache.lua finds it by its place: right before the result."""
    result: Raw = NULL
    """The result, when it is JSON, not streamed and at most INLINE_RESULT_BYTES; else it is in the hash, or `stored`."""
    error: ErrorBody | None = None
    finish_reason: str | None = None
    usage: Raw = NULL
    cache: str = ""
    """`hit` or `followed`: it is the answer of another task."""
    stored: Stored | None = None
    """The result, if it is neither here nor in the hash."""


class Elsewhere(Struct, frozen=True):
    """Stands in JSON for a result that is none, or is too large for Redis."""

    content_type: str
    bytes: int
    url: str
    """At ingress."""


INLINE_RESULT_BYTES = 64 * 1024
"""Larger results are read from the hash: the bus keeps two minutes of events in memory, for every reader."""

Event = Pending | Started | Reset | Resumed | Chunks | Finished


class Reply(Message, frozen=True, kw_only=True, omit_defaults=True, tag="reply.v1"):
    """One entry of a reply stream, field `reply`. `event` is the same for every repeat: drop what you have seen."""

    event: str
    """`<task>:<epoch>`."""
    id: str = ""
    """Our id of the task; empty when the entry was refused before it became one."""
    task_id: str = ""
    status: str
    """A terminal state."""
    model: str = ""
    user: str = ""
    result: Raw = NULL
    """The engine's answer; if that is not JSON, or too large for Redis, where it is (Elsewhere)."""
    text: str | None = None
    """The text of the first choice, for readers that want nothing else."""
    error: ErrorBody | None = None
    context: Raw = NULL
    metadata: Raw = NULL
    created_at_ms: int = 0
    finished_at_ms: int = 0
    cache: str = ""
    """`hit` or `followed`: it is the answer of another task."""
    alias: str = ""
    """What the producer called the model, if that was an alias; `model` is what served it."""
    variant: str = ""
    worker: str = ""
    attempt: int = 0


class Delivery(Message, frozen=True, kw_only=True, omit_defaults=True, tag="delivery.v1"):
    """An event on its way to a webhook, field `delivery`. Producer: shared/webhooks.py. Reader: notifier, group `webhooks`."""

    id: str
    """`webhook-id`: the same for every repeat."""
    event: str
    """Such as `task.completed`."""
    to: str
    """An endpoint of the configuration, or a URL."""
    tenant: str
    at_ms: int
    """When it happened, Unix ms."""
    task: str = ""
    """Whose hash tells the rest."""
    data: Raw = NULL
    """The rest, where there is no task."""
    tried: int = 0
    """Tries that have failed."""
    waited: int = 0
    """Times that there was no room for it, since the last of them."""


class Announcement(Message, frozen=True, kw_only=True, omit_defaults=True, tag="worker.v1"):
    """What a worker says of itself with each beat (hash `workers`)."""

    model: str
    engine: str
    slots: int
    running: int
    waiting: int
    kv_use: float
    normal: int = 0
    """Of the slots, most for the lanes normal and batch together."""
    batch: int = 0
    """Of these, most for the lane batch."""
    preemptions: int = 0
    """Since the engine's start."""
    breaker: str = ""
    """closed, half_open or open; empty: the engine is in the worker's process and has none."""


def result_in_json(task_id: str, result: bytes, finished: Finished | None) -> Raw:
    """A result for a reader of JSON. `result`: what the hash has of it; empty: nothing."""
    stored = finished.stored if finished is not None else None
    kind = finished.content_type if finished is not None else ""
    if stored is not None or (kind and result):
        return Raw(encode(elsewhere(task_id, len(result) if stored is None else stored.bytes, kind)))
    return Raw(result) if result else NULL


def elsewhere(task_id: str, size: int, content_type: str) -> Elsewhere:
    return Elsewhere(content_type or JSON, size, f"/v1/tasks/{task_id}/result")


def is_json_elsewhere(task_id: str, said: Raw) -> bool:
    """Of a result in JSON: it only says where the result is, which is JSON too, and too large for Redis."""
    if len(said) > LONGEST_PLACE:
        return False
    try:
        place = _elsewhere.decode(said)
    except UNDECODABLE:
        return False
    return place == elsewhere(task_id, place.bytes, JSON)


LONGEST_PLACE = 300
"""Bytes of what says where a result is, with the id of its task; whatever is longer need not be read."""

_encoder = msgspec.json.Encoder()
_elsewhere = msgspec.json.Decoder(Elsewhere)
_events: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_tasks: msgspec.json.Decoder[Task] = msgspec.json.Decoder(Task)
_deliveries: msgspec.json.Decoder[Delivery] = msgspec.json.Decoder(Delivery)


def encode(message: Any) -> bytes:
    return _encoder.encode(message)


def decode_event(data: bytes) -> Event:
    """Raises: msgspec.DecodeError."""
    return _events.decode(data)


def decode_task(data: bytes) -> Task:
    """Raises: msgspec.DecodeError."""
    return _tasks.decode(data)


def decode_delivery(data: bytes) -> Delivery:
    """Raises: msgspec.DecodeError."""
    return _deliveries.decode(data)
