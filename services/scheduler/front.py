"""The stream door: entries of hr:requests from systems that know nothing of us but this.

    XADD hr:requests * task '<the JSON of POST /v1/tasks>'
    XADD hr:requests * model smollm2-135m-instruct input_text 'Hello' reply_to orders

Every entry ends in one of three ways: a task, a failed reply on the stream it names, or a dead letter in hr:refused.
A faulty one never stops the others.
"""

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from services.scheduler import metrics
from shared import keys, request
from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.consume import Entry
from shared.clock import now_ms
from shared.config import Config
from shared.errors import BusError, ErrorBody, InvalidRequest, RequestError, WrongKeyType
from shared.keys import keys_of
from shared.lifecycle import State
from shared.messages import Reply
from shared.replies import reply_command
from shared.request import Request
from shared.submit import Submitter

log = logging.getLogger(__name__)

REFUSED_KEPT = 10_000
"""Dead letters of the door; older ones go. At 4 MiB each at most, an operator sees them long before memory does."""


class Front:
    def __init__(self, bus: Bus, config: Config, submitter: Submitter) -> None:
        self._bus, self._config, self._submitter = bus, config, submitter

    async def on_entries(self, entries: list[Entry]) -> Sequence[bytes]:
        """Answers the entries that are dealt with; those that Redis kept us from come again."""
        done = await asyncio.gather(*(self._take(entry) for entry in entries))
        return [entry.id for entry, dealt_with in zip(entries, done, strict=True) if dealt_with]

    async def _take(self, entry: Entry) -> bool:
        try:
            metrics.DOOR.labels(await self._accept(entry)).inc()
        except (RequestError, WrongKeyType) as error:
            return await self._refuse(entry, error)
        except BusError as error:
            log.warning("entry %s of hr:requests must wait: %s", entry.id, error)
            return False
        except Exception as error:  # one entry must never stop the others
            log.exception("entry %s of hr:requests broke the scheduler", entry.id)
            return await self._refuse(entry, InvalidRequest(f"The entry could not be handled: {error!r}"))
        return True

    async def _accept(self, entry: Entry) -> str:
        asked = parse(self._config, entry)
        origin = (keys.REQUESTS.encode(), entry.id, *entry.fields.values())
        submitted = await self._submitter.submit(asked, self._submitter.new_id(asked, *origin))
        if submitted.new:
            return "accepted"
        if submitted.state.terminal and asked.task.reply_to:
            await self._bus.commands.call("XADD", keys_of(submitted.id)[0].outbox, "*", "t", submitted.id)
        return "known"

    async def _refuse(self, entry: Entry, error: RequestError | WrongKeyType) -> bool:
        body = error.body if isinstance(error, RequestError) else ErrorBody(message=str(error), type="server_error")
        metrics.DOOR.labels(str(body.code or "wrong_key_type")).inc()
        log.info("refused entry %s of hr:requests: %s", entry.id.decode(), body.message)
        name, task_id = _said(entry, "reply_to"), _said(entry, "task_id")
        reply = Reply(
            event=f"{entry.id.decode()}:0",
            task_id=task_id,
            status=State.FAILED,
            error=body,
            created_at_ms=now_ms(),
            finished_at_ms=now_ms(),
        )
        try:
            if name and request.NAME.fullmatch(name):
                try:
                    await self._bus.commands.call(*reply_command(name, reply))
                except WrongKeyType as broken:
                    await self._bury(entry, f"{body.message} (and the reply failed: {broken})")
            else:
                await self._bury(entry, body.message)
        except BusError as unreachable:
            log.warning("entry %s of hr:requests must wait: %s", entry.id, unreachable)
            return False
        return True

    async def _bury(self, entry: Entry, reason: str) -> None:
        command: list[Arg] = [
            "XADD",
            keys.REFUSED,
            "MAXLEN",
            "~",
            REFUSED_KEPT,
            "*",
            "reason",
            reason,
            "entry",
            entry.id,
        ]
        for field, value in entry.fields.items():
            command += (b"said." + field, value)
        await self._bus.commands.call(*command)


def parse(config: Config, entry: Entry) -> Request:
    """Raises: RequestError."""
    if b"task" in entry.fields:
        if len(entry.fields) > 1:
            others = ", ".join(sorted(field.decode(errors="replace") for field in entry.fields if field != b"task"))
            raise InvalidRequest(f"Beside `task` there may be no other field; found {others}.", param="task")
        return request.from_json(config, entry.fields[b"task"])
    try:
        fields = {name.decode(): value.decode() for name, value in entry.fields.items()}
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"A field is not valid UTF-8: {error}") from None
    return request.from_fields(config, fields)


def _said(entry: Entry, field: str) -> str:
    """What a refused entry says of itself, read as leniently as can be: it may be refused for any reason."""
    if field.encode() in entry.fields:
        return entry.fields[field.encode()].decode(errors="replace")[:200]
    try:
        said = msgspec.json.decode(entry.fields.get(b"task", b"{}"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    value = said.get(field) if isinstance(said, dict) else None
    return value if isinstance(value, str) else ""
