"""A line of a batch's input, read: a request that can be submitted, or what is wrong with it."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from msgspec import Raw, Struct

from services.scheduler.batches.lines import Line
from shared import request
from shared.batches import Batch, End, Fault
from shared.config import Config
from shared.errors import UNDECODABLE, InvalidRequest, RequestError
from shared.lifecycle import Lane
from shared.payer import Payer
from shared.peek import model_of, peek_into
from shared.reading import read
from shared.request import Request
from shared.routing import choose

log = logging.getLogger(__name__)

LONGEST_ID = 512
"""Characters of a custom_id: it is kept in Redis while its item is open."""
ROOM_BYTES = 16 * 1024
"""What a line may have beside its body."""


MESSAGE_CHARS = 500


class Entry(Struct):
    """A line as the OpenAI API has them."""

    custom_id: str
    method: str
    url: str
    body: Raw


class Named(Struct):
    """What a faulty line says of itself, read as leniently as can be."""

    custom_id: Any = None


class Item(Struct, array_like=True, omit_defaults=True):
    """An item that was fed and has not ended, as `open` keeps it: all that the next holder needs."""

    line: int
    offset: int
    length: int
    """Where its line lies, bytes: should its task be lost, it is submitted again."""
    custom_id: str | None
    task_id: str = ""
    end: End | None = None
    """It ended without a task."""
    fault: Fault | None = None
    cached: bool = False
    """Its answer may be given to others: the task is kept for as long as any."""


class Refused(Exception):
    """The line can never be a task."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


_entry = msgspec.json.Decoder(Entry)
_named = msgspec.json.Decoder(Named)
_items: msgspec.json.Decoder[Item] = msgspec.json.Decoder(Item)


def decode_item(data: bytes) -> Item:
    return _items.decode(data)


def custom_id_of(line: Line) -> str | None:
    """None: it has none that can be told."""
    try:
        said = _named.decode(line.text or b"").custom_id
    except UNDECODABLE:
        return None
    return said if isinstance(said, str) and 0 < len(said) <= LONGEST_ID else None


def digest_of(custom_id: str) -> int:
    """64 bits: among a million ids, two that differ look alike once in 40 million files."""
    return int.from_bytes(hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=8).digest())


def longest_line(config: Config) -> int:
    return config.limits.body_bytes + ROOM_BYTES


class Reader:
    """Reads the lines of one batch."""

    def __init__(self, config: Config, batch: Batch) -> None:
        self._config, self._batch = config, batch
        self._payer = Payer(tenant=batch.tenant, key=batch.key, named=True)

    def check(self, line: Line) -> tuple[str, str]:
        """custom_id and model of a line; most of what `request` finds, at a fraction of its cost. Raises: Refused."""
        entry = self._entry(line)
        with self._told_of(line):
            peek = peek_into(self._batch.endpoint, bytes(entry.body), "", prefix="body")
            if peek.stream:
                raise _streams()
            model = model_of(self._config, peek)
            choose(self._config.policy, self._config.pools, model, "")
        return entry.custom_id, model

    def request(self, line: Line, expires_in_s: float) -> Request:
        """Raises: Refused."""
        entry, batch = self._entry(line), self._batch
        envelope = {
            "body": entry.body,
            "route": batch.endpoint,
            "lane": Lane.BATCH,
            "reply_to": reply_name(batch.id),
            "expires_in": min(expires_in_s, self._config.limits.waiting_s),
        }
        with self._told_of(line):
            data = msgspec.json.encode(envelope)
            asked = request.from_json(self._config, self._payer, data, origin=f"{batch.id} {entry.custom_id}")
            if asked.task.streamed:
                raise _streams()
        return asked

    @contextmanager
    def _told_of(self, line: Line) -> Iterator[None]:
        """What a line breaks is a fault of that line: it never stops those behind it. Raises: Refused."""
        try:
            yield
        except RequestError as error:
            raise Refused(fault_of(error, line.number)) from None
        except Exception as error:
            log.exception("line %d of %s cannot be made a request", line.number, self._batch.id)
            message = f"The line cannot be made a request: {error!r}"[:MESSAGE_CHARS]
            raise Refused(Fault(code=InvalidRequest.code, message=message, line=line.number)) from None

    def _entry(self, line: Line) -> Entry:
        """Raises: Refused."""
        number = line.number
        if line.text is None:
            limit = longest_line(self._config)
            raise Refused(Fault(code="line_too_long", message=f"The line is longer than {limit} bytes.", line=number))
        try:
            entry: Entry = read(_entry, line.text, Entry)
        except InvalidRequest as error:
            raise Refused(_unreadable(error, number)) from None
        if not 0 < len(entry.custom_id) <= LONGEST_ID:
            message = f"`custom_id` has {len(entry.custom_id)} characters; allowed: 1 to {LONGEST_ID}."
            raise Refused(Fault(code="invalid_custom_id", message=message, param="custom_id", line=number))
        if entry.method != "POST":
            message = f"`method` is {entry.method[:40]!r}; allowed: POST."
            raise Refused(Fault(code="invalid_method", message=message, param="method", line=number))
        if entry.url != self._batch.endpoint:
            message = f"`url` is {entry.url[:80]!r}; the endpoint of the batch is {self._batch.endpoint}."
            raise Refused(Fault(code="invalid_url", message=message, param="url", line=number))
        return entry


def reply_name(batch_id: str) -> str:
    """Of the reply stream, as Task.reply_to says it."""
    return f"batch.{batch_id}"


def duplicate(custom_id: str, line: int) -> Fault:
    message = f"The custom_id {custom_id[:80]!r} stands in an earlier line, too; each must be unique."
    return Fault(code="duplicate_custom_id", message=message, param="custom_id", line=line)


def fault_of(error: RequestError, line: int) -> Fault:
    return Fault(code=str(error.code), message=str(error), param=error.param, line=line)


def _streams() -> InvalidRequest:
    message = "The line asks for a stream (`stream`, of a speech `stream_format`); items of a batch do not stream."
    return InvalidRequest(message, param="body.stream")


def _unreadable(error: InvalidRequest, line: int) -> Fault:
    code = "invalid_json_line"
    if error.param is not None:
        code = "missing_required_parameter" if "is missing" in str(error) else "invalid_type"
    return Fault(code=code, message=str(error).replace("The body is", "The line is"), param=error.param, line=line)
