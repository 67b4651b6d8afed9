"""A stream door: entries of hr:requests, or hr:requests:<producer>, from systems that know nothing of us but this.

    XADD hr:requests * task '<the JSON of POST /v1/tasks>'
    XADD hr:requests * model smollm2-135m-instruct input_text 'Hello' reply_to orders
    XADD hr:requests * cancel order-17
    XADD hr:requests * cancel order-18 tenant acme

Every entry ends in one of four ways: a task, a cancelled task, a failed reply on the stream it names, or a dead letter in
hr:refused. A faulty one never stops the others. Who pays is the door's tenant (shared/payer.py); a task that asks to wait for
its tenant's limits (`on_limit`) is made like any other, and waits behind the door.

A large body goes to the object store first, which may take long or forever. The door reads on meanwhile: what is late stays pending,
and is acknowledged when it has ended. Who takes it over from here repeats it, which is harmless.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

import msgspec

from services.scheduler import metrics
from shared import keys, request
from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.consume import Entry, settle
from shared.bus.streams import append
from shared.cancel import Canceller
from shared.clock import now_ms
from shared.config import Config
from shared.errors import (
    UNDECODABLE,
    BusError,
    ErrorBody,
    HeadraceError,
    InvalidRequest,
    InvalidTaskId,
    ProducerUnknown,
    RequestError,
    StoreUnavailable,
    TaskNotFound,
    WrongKeyType,
)
from shared.ids import place_of
from shared.keys import keys_of
from shared.lifecycle import State
from shared.messages import Reply, decode_task
from shared.payer import Payer, of_producer
from shared.replies import send_reply
from shared.request import Request
from shared.submit import Submitter
from shared.wishes import tenant_of

log = logging.getLogger(__name__)

PATIENCE_S = 1.0
"""For the entries of one read: what needs Redis alone takes milliseconds."""
MOST_LATE = 32
"""Entries that are under way beside the door: with as many it waits for what it has read, however long, and reads nothing more."""
REFUSED_KEPT = 10_000
"""Dead letters of the door; older ones go. At 4 MiB each at most, an operator sees them long before memory does."""


class Front:
    def __init__(self, bus: Bus, config: Config, submitter: Submitter, producer: str = "") -> None:
        """`producer`: whose door it is; empty: hr:requests."""
        self._bus, self._config, self._submitter = bus, config, submitter
        self._canceller = Canceller(bus, config)
        self._producer = producer
        self._last_payer: Payer | None = None
        self._late: dict[bytes, asyncio.Task[HeadraceError | None]] = {}
        self.door = keys.door(producer) if producer else keys.REQUESTS

    async def on_entries(self, entries: list[Entry]) -> Sequence[bytes]:
        """Raises: Unfinished, if Redis is out of reach or full."""
        taken = {entry.id: asyncio.create_task(self._take(entry)) for entry in entries if entry.id not in self._late}
        if taken:
            await asyncio.wait(taken.values(), timeout=PATIENCE_S if len(self._late) < MOST_LATE else None)
        for id, task in taken.items():
            if not task.done():
                self._late[id] = task
                task.add_done_callback(partial(self._on_late, id))
        ended = [entry for entry in entries if entry.id in taken and entry.id not in self._late]
        return settle(ended, [taken[entry.id].result() for entry in ended])

    def _on_late(self, entry_id: bytes, task: asyncio.Task[HeadraceError | None]) -> None:
        """What could not be done stays pending, and comes again."""
        del self._late[entry_id]
        if task.cancelled():
            return
        if (error := task.result()) is not None:
            log.error("the entry %s of %s must wait: %s", entry_id.decode(), self.door, error)
            return
        self._bus.commands.post("XACK", self.door, keys.FRONT, entry_id)
        self._bus.commands.post("XDEL", self.door, entry_id)

    async def _take(self, entry: Entry) -> HeadraceError | None:
        """What kept us from it. Without the object store only those wait whose body is to lie there: they come again."""
        try:
            metrics.DOOR.labels(await self._accept(entry)).inc()
        except (RequestError, WrongKeyType) as error:
            return await self._refuse(entry, error)
        except (BusError, StoreUnavailable) as error:
            return error
        except Exception as error:  # one entry must never stop the others
            log.exception("entry %s of %s broke the scheduler", entry.id, self.door)
            return await self._refuse(entry, InvalidRequest(f"The entry could not be handled: {error!r}"))
        return None

    async def _accept(self, entry: Entry) -> str:
        payer = self._payer()
        if b"cancel" in entry.fields:
            await self._cancel(payer, only_field(entry, "cancel", "tenant"), entry.fields.get(b"tenant", b""))
            return "cancel"
        asked = parse(self._config, payer, entry, self.door)
        origin = (self.door.encode(), entry.id, *entry.fields.values())
        submitted = await self._submitter.submit(asked, self._submitter.new_id(asked, *origin))
        if submitted.new:
            return "accepted"
        if submitted.state.terminal and asked.task.reply_to:
            await append(self._bus, keys_of(submitted.id)[0].outbox, {"t": submitted.id})
        return "known"

    def _payer(self) -> Payer:
        """A producer that the configuration has dropped is charged as before: the door closes once it is empty.

        Raises: ProducerUnknown.
        """
        try:
            self._last_payer = of_producer(self._config.policy, self._producer)
        except ProducerUnknown:
            if not self._producer or self._last_payer is None:
                raise
        return self._last_payer

    async def _cancel(self, payer: Payer, named: bytes, owner: bytes) -> None:
        """A task of ours is known by the form of its id; any other name is a producer's own, and `owner`'s, if that is not empty.

        Raises: RequestError.
        """
        name = named.decode(errors="replace")
        tenant = tenant_of(payer, owner.decode(errors="replace"))
        if is_task_id(name):
            if payer.named or owner:
                await self._check_owner(tenant, name)
            await self._canceller.cancel(name)
        elif name:
            await self._canceller.cancel_key(tenant, request.check_name("cancel", name))
        else:
            raise InvalidRequest("`cancel` is empty; it names a task.", param="cancel")

    async def _check_owner(self, tenant: str, task_id: str) -> None:
        """What belongs to others does not exist for who speaks for a tenant. Raises: TaskNotFound."""
        spec = await self._bus.read("HGET", keys_of(task_id)[0].task(task_id), "spec")
        if spec is not None and decode_task(spec).tenant != tenant:
            raise TaskNotFound(task_id)

    async def _refuse(self, entry: Entry, error: RequestError | WrongKeyType) -> BusError | None:
        body = error.body if isinstance(error, RequestError) else ErrorBody(message=str(error), type="server_error")
        metrics.DOOR.labels(str(body.code or "wrong_key_type")).inc()
        log.info("refused entry %s of %s: %s", entry.id.decode(), self.door, body.message)
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
                    await send_reply(self._bus, name, reply)
                except WrongKeyType as broken:
                    await self._bury(entry, f"{body.message} (and the reply failed: {broken})")
            else:
                await self._bury(entry, body.message)
        except BusError as unreachable:
            return unreachable
        return None

    async def _bury(self, entry: Entry, reason: str) -> None:
        said: dict[Arg, Arg] = {b"said." + field: value for field, value in entry.fields.items()}
        letter: dict[Arg, Arg] = {"reason": reason, "entry": entry.id, "door": self.door}
        await append(self._bus, keys.REFUSED, letter | said, most_kept=REFUSED_KEPT)


def parse(config: Config, payer: Payer, entry: Entry, door: str) -> Request:
    """The same entry is always the same request. Raises: RequestError."""
    origin = f"{door} {entry.id.decode()}"
    if b"task" in entry.fields:
        return request.from_json(config, payer, only_field(entry, "task"), origin=origin)
    try:
        fields = {name.decode(): value.decode() for name, value in entry.fields.items()}
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"A field is not valid UTF-8: {error}") from None
    return request.from_fields(config, payer, fields, origin=origin)


def is_task_id(name: str) -> bool:
    try:
        place_of(name)
    except InvalidTaskId:
        return False
    return True


def only_field(entry: Entry, name: str, beside: str = "") -> bytes:
    """Raises: InvalidRequest if there is any other, but for `beside`."""
    others = sorted({field.decode(errors="replace") for field in entry.fields} - {name, beside})
    if others:
        than = f" than `{beside}`" if beside else ""
        raise InvalidRequest(
            f"Beside `{name}` there may be no other field{than}; found {', '.join(others)}.", param=name
        )
    return entry.fields[name.encode()]


def _said(entry: Entry, field: str) -> str:
    """What a refused entry says of itself, read as leniently as can be: it may be refused for any reason."""
    if field.encode() in entry.fields:
        return entry.fields[field.encode()].decode(errors="replace")[:200]
    try:
        said = msgspec.json.decode(entry.fields.get(b"task", b"{}"))
    except UNDECODABLE:
        return ""
    value = said.get(field) if isinstance(said, dict) else None
    return value if isinstance(value, str) else ""
