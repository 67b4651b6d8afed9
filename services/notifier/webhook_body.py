"""What a webhook says of a task that has ended: the task as `GET /v1/tasks/<id>` shows it, with its result if that is small."""

import contextlib
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw, Struct

from shared.bus.client import Bus
from shared.errors import UNDECODABLE, ErrorBody, HeadraceError
from shared.keys import keys_of
from shared.lifecycle import Lane, State
from shared.messages import NULL, Delivery, elsewhere, encode
from shared.record import FIELDS, Record, parse_record

RESULT_BYTES = 64 * 1024
"""Larger ones are fetched by whoever wants them: many receivers refuse bodies of some 100 KiB."""


class Ended(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="object", tag="task"):
    """A task, with the fields of the same names as ingress shows them. Times are Unix milliseconds."""

    id: str
    status: State
    tenant: str = ""
    model: str = ""
    alias: str = ""
    variant: str = ""
    route: str = ""
    lane: Lane | None = None
    session: str = ""
    user: str = ""
    task_id: str = ""
    requeued_from: str = ""
    created_at_ms: int = 0
    started_at_ms: int = 0
    first_token_at_ms: int = 0
    finished_at_ms: int = 0
    attempt: int = 0
    worker: str = ""
    cache: str = ""
    finish_reason: str | None = None
    usage: Raw = NULL
    error: ErrorBody | None = None
    context: Raw = NULL
    metadata: Raw = NULL
    result: Raw = NULL
    """If it is large, or no JSON: where it is."""
    links: dict[str, str]


class Subject(Struct):
    id: str = ""


async def read_body(bus: Bus, delivery: Delivery, base_url: str) -> bytes:
    """`base_url`: what links begin with, without a slash at its end. Raises: BusError."""
    if not delivery.task:
        return event_body(delivery, delivery.data)
    shard, _ = keys_of(delivery.task)
    *values, result = await bus.bulk.call("HMGET", shard.task(delivery.task), *FIELDS, "result")
    record = None
    with contextlib.suppress(HeadraceError):  # a foreign hand was there: what is known without it is told
        record = parse_record(values)
    if record is None or not record.state.terminal:
        return event_body(delivery, forgotten_data(delivery, base_url))
    return event_body(delivery, task_data(delivery.task, record, result, base_url))


def event_body(delivery: Delivery, data: Raw) -> bytes:
    at = datetime.fromtimestamp(delivery.at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return encode({"type": delivery.event, "timestamp": at, "data": data})


def task_data(task_id: str, record: Record, result: bytes | None, base_url: str) -> Raw:
    task, finished = record.task, record.finished
    return _raw(
        Ended(
            id=task_id,
            status=record.state,
            tenant=task.tenant,
            model=task.model,
            alias=task.alias,
            variant=task.variant,
            route=task.route,
            lane=task.lane,
            session=task.session,
            user=task.user,
            task_id=task.task_id,
            requeued_from=task.requeued_from,
            created_at_ms=record.created_at_ms,
            started_at_ms=record.started_at_ms,
            first_token_at_ms=record.first_token_at_ms,
            finished_at_ms=record.finished_at_ms,
            attempt=record.attempt,
            worker=record.worker,
            cache=finished.cache if finished else "",
            finish_reason=finished.finish_reason if finished else None,
            usage=finished.usage if finished else NULL,
            error=finished.error if finished else None,
            context=task.context,
            metadata=task.metadata,
            result=_result(task_id, record, result, base_url),
            links=_links(task_id, base_url),
        )
    )


def forgotten_data(delivery: Delivery, base_url: str) -> Raw:
    """The task's hash has expired while its receiver could not be reached: all that is known is how it ended."""
    task, status = delivery.task, ended_as(delivery)
    told = Ended(
        id=task, status=status, tenant=delivery.tenant, finished_at_ms=delivery.at_ms, links=_links(task, base_url)
    )
    return _raw(told)


def subject_of(delivery: Delivery) -> str:
    """What an event that is about no task is about, such as a batch; empty: its data has no id."""
    try:
        return msgspec.json.decode(delivery.data, type=Subject).id
    except UNDECODABLE:
        return ""


def ended_as(delivery: Delivery) -> State:
    """Raises: ValueError."""
    return State(delivery.event.removeprefix("task."))


def _result(task_id: str, record: Record, result: bytes | None, base_url: str) -> Raw:
    finished = record.finished
    stored = finished.stored if finished else None
    if record.state is not State.COMPLETED or not (result or stored):
        return NULL
    content_type = finished.content_type if finished else ""
    size = stored.bytes if stored is not None else len(result or b"")
    if result and size <= RESULT_BYTES and not content_type:
        return Raw(result)
    place = elsewhere(task_id, size, content_type)
    return _raw(msgspec.structs.replace(place, url=base_url + place.url))


def _links(task_id: str, base_url: str) -> dict[str, str]:
    return {"self": f"{base_url}/v1/tasks/{task_id}"}


def _raw(value: Any) -> Raw:
    return Raw(encode(value))
