"""Bytes that were written once are read for ever, and what is written now are the same bytes.

A line here is never changed: a changed meaning is a new tag, with a line of its own.
"""

from typing import Any, get_args

import msgspec
import pytest
from msgspec import Raw, Struct

from shared import messages
from shared.errors import ErrorBody
from shared.lifecycle import Lane, State
from shared.messages import (
    Announcement,
    Chunks,
    Delivery,
    Event,
    Finished,
    Message,
    Pending,
    Reply,
    Reset,
    Resumed,
    Started,
    Stored,
    Task,
    encode,
)

GOLDEN: list[tuple[Message, bytes]] = [
    (
        Task(route="/v1/completions", model="m", tenant="default"),
        b'{"type":"task.v1","route":"/v1/completions","model":"m","tenant":"default"}',
    ),
    (
        Task(
            route="/v1/chat/completions",
            model="m",
            tenant="default",
            lane=Lane.BATCH,
            streamed=True,
            session="s",
            user="u",
            reply_to="r",
            task_id="p",
            template_id="default",
            context=Raw(b'{"a":1}'),
            metadata=Raw(b"{}"),
        ),
        (b'{"type":"task.v1","route":"/v1/chat/completions","model":"m","tenant":"default","lane":"batch","streamed":true,'
         b'"session":"s","user":"u","reply_to":"r","task_id":"p","template_id":"default","context":{"a":1},"metadata":{}}'),
    ),
    (
        Task(route="/v1/completions", model="m", tenant="default", expires_in_s=1.5, attached=True, requeued_from="t"),
        (b'{"type":"task.v1","route":"/v1/completions","model":"m","tenant":"default","expires_in_s":1.5,"attached":true,'
         b'"requeued_from":"t"}'),
    ),
    (
        Task(route="/v1/completions", model="m", tenant="default", shared=True, stored=Stored(name="o", bytes=5)),
        (b'{"type":"task.v1","route":"/v1/completions","model":"m","tenant":"default","shared":true,'
         b'"stored":{"name":"o","bytes":5}}'),
    ),
    (Pending(model="m", lane=Lane.NORMAL), b'{"type":"pending.v1","model":"m","lane":"normal"}'),
    (Started(attempt=1, worker="w"), b'{"type":"started.v1","attempt":1,"worker":"w"}'),
    (Reset(attempt=2, why="retry"), b'{"type":"reset.v1","attempt":2,"why":"retry"}'),
    (Resumed(attempt=2, last=7), b'{"type":"resumed.v1","attempt":2,"last":7}'),
    (
        Chunks(attempt=1, first=3, last=4, chunks=[Raw(b'{"n":3}'), Raw(b'{"n":4}')]),
        b'{"type":"chunks.v1","attempt":1,"first":3,"last":4,"chunks":[{"n":3},{"n":4}]}',
    ),
    (
        Finished(attempt=1, last=0, state=State.COMPLETED, status=200),
        b'{"type":"finished.v1","attempt":1,"last":0,"state":"completed","status":200}',
    ),
    (
        Finished(attempt=1, last=0, state=State.COMPLETED, status=200, content_type="image/png", stored=Stored(name="o", bytes=5)),
        (b'{"type":"finished.v1","attempt":1,"last":0,"state":"completed","status":200,"content_type":"image/png",'
         b'"stored":{"name":"o","bytes":5}}'),
    ),
    (
        Finished(
            attempt=2,
            last=7,
            state=State.FAILED,
            status=500,
            streamed=True,
            result=Raw(b'{"x":1}'),
            error=ErrorBody(message="no", type="server_error", param=None, code="engine_error"),
            finish_reason="stop",
            usage=Raw(b'{"total_tokens":5}'),
        ),
        (b'{"type":"finished.v1","attempt":2,"last":7,"state":"failed","status":500,"streamed":true,"result":{"x":1},'
         b'"error":{"message":"no","type":"server_error","param":null,"code":"engine_error"},"finish_reason":"stop",'
         b'"usage":{"total_tokens":5}}'),
    ),
    (
        Reply(event="t:1", id="t", task_id="p", status="completed", model="m", user="u", result=Raw(b"{}"), text="hi",
              context=Raw(b"{}"), metadata=Raw(b"{}"), created_at_ms=1, finished_at_ms=2),
        (b'{"type":"reply.v1","event":"t:1","id":"t","task_id":"p","status":"completed","model":"m","user":"u","result":{},'
         b'"text":"hi","context":{},"metadata":{},"created_at_ms":1,"finished_at_ms":2}'),
    ),
    (
        Reply(event="1-0:0", status="failed", error=ErrorBody(message="no", type="invalid_request_error")),
        (b'{"type":"reply.v1","event":"1-0:0","status":"failed",'
         b'"error":{"message":"no","type":"invalid_request_error","param":null,"code":null}}'),
    ),
    (
        Delivery(id="msg_1", event="task.completed", to="orders", tenant="acme", at_ms=1),
        b'{"type":"delivery.v1","id":"msg_1","event":"task.completed","to":"orders","tenant":"acme","at_ms":1}',
    ),
    (
        Delivery(
            id="msg_1", event="batch.failed", to="https://x.example/", tenant="acme", at_ms=1, task="t", data=Raw(b"{}"), tried=2, waited=3
        ),
        (b'{"type":"delivery.v1","id":"msg_1","event":"batch.failed","to":"https://x.example/","tenant":"acme","at_ms":1,'
         b'"task":"t","data":{},"tried":2,"waited":3}'),
    ),
    (
        Announcement(model="m", engine="echo", slots=4, running=1, waiting=0, kv_use=0.5),
        b'{"type":"worker.v1","model":"m","engine":"echo","slots":4,"running":1,"waiting":0,"kv_use":0.5}',
    ),
]  # fmt: skip

CASES = pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=[type(message).__name__ for message, _ in GOLDEN])


def decode(kind: type[Message], data: bytes) -> Any:
    return msgspec.json.decode(data, type=kind)


@CASES
def test_message_is_written_as_it_always_was(message: Message, golden: bytes) -> None:
    assert encode(message) == golden


@CASES
def test_golden_bytes_are_read_and_written_again_unchanged(message: Message, golden: bytes) -> None:
    assert encode(decode(type(message), golden)) == golden


@CASES
def test_field_of_a_later_version_is_tolerated(message: Message, golden: bytes) -> None:
    later = golden[:-1] + b',"of_a_later_version":{"x":[1]}}'
    assert encode(decode(type(message), later)) == golden


@CASES
def test_tag_of_a_later_version_is_refused(message: Message, golden: bytes) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$\.type"):
        decode(type(message), golden.replace(b".v1", b".v2", 1))


@CASES
def test_events_are_read_by_the_readers_of_the_bus_and_nothing_else_is(message: Message, golden: bytes) -> None:
    if isinstance(message, get_args(Event)):
        assert encode(messages.decode_event(golden)) == golden
    else:
        with pytest.raises(msgspec.ValidationError):
            messages.decode_event(golden)


def test_every_message_has_its_golden_bytes() -> None:
    kinds = {kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Message)}
    assert {type(message) for message, _ in GOLDEN} == kinds - {Message}


def test_messages_are_frozen_and_their_tags_carry_a_version() -> None:
    tags = set()
    for kind in {type(message) for message, _ in GOLDEN}:
        assert issubclass(kind, Struct)
        config = kind.__struct_config__
        assert config.frozen, kind
        assert config.tag_field == "type", kind
        assert str(config.tag).endswith(".v1")
        tags.add(config.tag)
    assert len(tags) == len({type(message) for message, _ in GOLDEN})
