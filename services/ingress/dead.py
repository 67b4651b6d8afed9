"""Dead letters over HTTP: look at what was given up, have it run again, or drop it; one by one or by filter."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Raw, Struct
from starlette.types import Receive, Scope, Send

from services.ingress.auth import Auth, may_see
from services.ingress.http import Endpoint, query, read_body, respond
from services.ingress.letters import (
    ANY,
    REPLY,
    TASK,
    WEBHOOK,
    Address,
    Letter,
    Scan,
    Wanted,
    parse_address,
    read_letter,
)
from services.ingress.tasks import Links, page_limit, respond_accepted, shards_of
from shared.bus.client import Bus
from shared.bus.streams import append
from shared.config import Config
from shared.errors import (
    UNDECODABLE,
    BodyGone,
    BusError,
    DeadLetterNotFound,
    ErrorBody,
    InvalidRequest,
    ModelNotFound,
    NoObjectStore,
    ObjectMissing,
    RequestError,
    StoreUnavailable,
    TaskNotFound,
)
from shared.ids import derived_task_id, place_of
from shared.keys import WEBHOOKS_GONE, keys_of
from shared.large import Large
from shared.lifecycle import State
from shared.messages import NULL, Task, decode_delivery, encode
from shared.payer import Payer
from shared.record import Attempt
from shared.request import again
from shared.submit import Submitter
from shared.webhooks import announce, destination, gone_mark

TOO_MANY = 429
FILTERS = {"pool": ANY, "code": ANY, "model": ANY, "after": ""}


class LetterView(Struct, kw_only=True, omit_defaults=True, tag_field="object", tag="dead_letter"):
    """A dead letter as clients see it."""

    id: str
    kind: str
    task: str
    """Our id of the task that was given up, or whose reply or webhook could not be delivered; or of the batch whose webhook."""
    code: str
    reason: str
    model: str = ""
    created_at_ms: int
    """When it was given up, Unix milliseconds."""
    history: list[Attempt] = []
    links: dict[str, str]
    spec: Task | None = None
    """What was asked, beside the body. Like the body, only in the view of a single letter."""
    body: Raw = NULL
    """None of one that lies in the object store, and cannot be read there."""


class Refused(Struct):
    id: str
    error: ErrorBody


class Dead:
    """Whoever has proved who it is finds its own tenant's letters, and no others."""

    def __init__(self, bus: Bus, config: Config, links: Links, submitter: Submitter, large: Large, auth: Auth) -> None:
        self._bus, self._config, self._links, self._submitter, self._auth = bus, config, links, submitter, auth
        self._large = large
        self.list = Endpoint("/v1/dead", self._list)
        self.show = Endpoint("/v1/dead/{entry}", self._show)
        self.drop = Endpoint("/v1/dead/{entry}", self._drop_one)
        self.requeue = Endpoint("/v1/dead/{entry}/requeue", self._requeue_one)
        self.requeue_many = Endpoint("/v1/dead/requeue", self._requeue_many)
        self.drop_many = Endpoint("/v1/dead/drop", self._drop_many)

    # -- one letter

    async def _show(self, scope: Scope, receive: Receive, send: Send) -> None:
        letter = await self._named(scope)
        seen = view(letter)
        seen.spec = letter.task
        with suppress(NoObjectStore, BodyGone, StoreUnavailable):  # the rest of the letter is worth being seen
            seen.body = json_of(await self._body_of(letter))
        await respond(send, 200, encode(seen))

    async def _requeue_one(self, scope: Scope, receive: Receive, send: Send) -> None:
        letter = await self._named(scope)
        task_id, state = await self._requeue(letter)
        if is_of_batch(letter):
            told = {"id": task_id, "object": "batch", "status": state, "links": {"self": place_of_letter(letter)}}
            await respond(send, 202, encode(told))
            return
        more = {"requeued_from": letter.task_id} if letter.kind == TASK else {}
        await respond_accepted(send, task_id, state, self._links, **more)

    async def _drop_one(self, scope: Scope, receive: Receive, send: Send) -> None:
        letter = await self._named(scope)
        if not await self._drop(letter.address):
            raise DeadLetterNotFound(str(letter.address))
        await respond(send, 200, encode({"id": str(letter.address), "object": "dead_letter", "deleted": True}))

    # -- many

    async def _list(self, scope: Scope, receive: Receive, send: Send) -> None:
        scan = self._scan(self._auth.payer(scope), query(scope, FILTERS | {"limit": "20"}))
        views = []
        while (letter := await scan.next()) is not None:
            views.append(view(letter))
        await respond(send, 200, encode({"object": "list", "data": views, **await self._progress(scan)}))

    async def _requeue_many(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def requeue(letter: Letter) -> None:
            await self._requeue(letter)

        await self._each(requeue, scope, receive, send)

    async def _drop_many(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def drop(letter: Letter) -> None:
            await self._drop(letter.address)

        await self._each(drop, scope, receive, send)

    async def _each(self, act: Callable[[Letter], Awaitable[None]], scope: Scope, receive: Receive, send: Send) -> None:
        """One after the other, so that `next` is exact: a full backlog, a limit of the tenant, or the loss of Redis or of the object
        store ends it in between."""
        payer = self._auth.payer(scope)
        if await read_body(scope, receive, self._config.limits.body_bytes):
            raise InvalidRequest("Filters go into the query string; this route takes no body.")
        scan, handled = self._scan(payer, query(scope, FILTERS | {"limit": "100"})), 0
        refused: list[Refused] = []
        while (letter := await scan.next()) is not None:
            try:
                await act(letter)
                handled += 1
            except (RequestError, BusError, StoreUnavailable) as error:
                if isinstance(error, RequestError) and error.status != TOO_MANY:
                    refused.append(Refused(str(letter.address), error.body))
                    continue
                if not handled:
                    raise
                break
        done = {"object": "dead_letters", "handled": handled, "refused": refused}
        await respond(send, 200, encode({**done, **await self._progress(scan)}))

    def _scan(self, payer: Payer, asked: Mapping[str, str]) -> Scan:
        after = parse_address(asked["after"])
        if after is None and asked["after"]:
            raise InvalidRequest(f"`after` is {asked['after'][:80]!r}; it must be the `next` of a page.", param="after")
        if asked["pool"] not in (ANY, *self._config.pools):
            known = ", ".join(self._config.pools)
            raise InvalidRequest(f"`pool` is {asked['pool'][:40]!r}; known: {known}", param="pool")
        shards = [shard for shard in shards_of(self._config) if asked["pool"] in (ANY, shard.pool)]
        tenant = payer.tenant if payer.named else ANY
        wanted = Wanted(code=asked["code"], model=asked["model"], tenant=tenant)
        return Scan(self._bus, shards, wanted, after=after, limit=page_limit(asked["limit"]))

    async def _progress(self, scan: Scan) -> dict[str, Any]:
        """How far a request over many letters has come; `total` counts whatever lies in its pools, wanted or not."""
        lengths = await asyncio.gather(*(self._bus.commands.call("XLEN", shard.dead) for shard in scan.shards))
        behind = str(scan.last) if scan.more and scan.last is not None else None
        return {"scanned": scan.scanned, "total": sum(lengths), "has_more": scan.more, "next": behind}

    # -- parts

    def _address(self, text: str) -> Address:
        address = parse_address(text)
        pool = self._config.pools.get(address.pool) if address is not None else None
        if address is None or pool is None or address.shard >= pool.shards:
            raise DeadLetterNotFound(text)
        return address

    async def _named(self, scope: Scope) -> Letter:
        payer, address = self._auth.payer(scope), self._address(scope["path_params"]["entry"])
        found = await self._bus.bulk.call("XRANGE", address.keys.dead, address.entry, address.entry)
        letter = read_letter(address.keys, *found[0]) if found else None
        if letter is None or not may_see(payer, letter.tenant):
            raise DeadLetterNotFound(str(address))
        return letter

    async def _drop(self, address: Address) -> bool:
        return bool(await self._bus.commands.call("XDEL", address.keys.dead, address.entry))

    async def _requeue(self, letter: Letter) -> tuple[str, State]:
        """The letter goes last: whoever is stopped in between asks again, and makes nothing twice. Raises: RequestError."""
        ways = {REPLY: self._send_again, WEBHOOK: self._tell_again}
        again = await ways.get(letter.kind, self._run_again)(letter)
        await self._drop(letter.address)
        return again

    async def _run_again(self, letter: Letter) -> tuple[str, State]:
        """A new task, whose id follows from the old one's. Nobody waits for it as its client did, so it is not attached."""
        pool = letter.address.pool
        if letter.task is None:
            raise InvalidRequest(f"The letter {letter.address} holds no task that can be read.", param="id")
        if letter.task.model not in (served := self._config.pools[pool].models):
            raise ModelNotFound(letter.task.model, served)
        body = await self._body_of(letter)
        task = msgspec.structs.replace(
            letter.task, requeued_from=letter.task_id, attached=False, shared=False, stored=None
        )
        new_id = derived_task_id(place_of(letter.task_id), b"requeue", letter.task_id.encode())
        submitted = await self._submitter.submit_as(again(self._config, task, body, pool), new_id)
        return submitted.id, submitted.state

    async def _body_of(self, letter: Letter) -> bytes:
        """Raises: BodyGone, NoObjectStore, StoreUnavailable."""
        if letter.task is None or letter.task.stored is None:
            return letter.body
        try:
            return await self._large.get(letter.task_id, letter.task.stored)
        except ObjectMissing:
            raise BodyGone(str(letter.address)) from None

    async def _send_again(self, letter: Letter) -> tuple[str, State]:
        keys, _ = keys_of(letter.task_id)
        state = await self._bus.commands.call("HGET", keys.task(letter.task_id), "state")
        if state is None:
            raise TaskNotFound(letter.task_id)
        await append(self._bus, keys.outbox, {"t": letter.task_id})
        return letter.task_id, State(state.decode())

    async def _tell_again(self, letter: Letter) -> tuple[str, State]:
        """A place that answered 410 is asked anew."""
        try:
            delivery = decode_delivery(letter.delivery)
            state = State(delivery.event.rpartition(".")[2])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise InvalidRequest(f"The letter {letter.address} holds no event that can be read.", param="id") from None
        if (place := destination(self._config.policy, delivery.tenant, delivery.to)) is not None:
            await self._bus.commands.call("ZREM", WEBHOOKS_GONE, gone_mark(place))
        await announce(self._bus, delivery)
        return letter.task_id, state


def is_of_batch(letter: Letter) -> bool:
    return letter.task_id.startswith("batch_")


def place_of_letter(letter: Letter) -> str:
    """Where clients look at what the letter is about."""
    return f"/v1/{'batches' if is_of_batch(letter) else 'tasks'}/{letter.task_id}"


def view(letter: Letter) -> LetterView:
    address, subject = letter.address, "batch" if is_of_batch(letter) else "task"
    return LetterView(
        id=str(address),
        kind=letter.kind,
        task=letter.task_id,
        code=letter.code,
        reason=letter.reason,
        model=letter.task.model if letter.task is not None else "",
        created_at_ms=address.at_ms,
        history=letter.history,
        links={"self": f"/v1/dead/{address}", subject: place_of_letter(letter)},
    )


def json_of(body: bytes) -> Raw:
    """The body as it came; as text if it is no JSON, as a form is, or not UTF-8 in a place that no door has to read."""
    try:
        body.decode()
        return msgspec.json.decode(body, type=Raw) if body else NULL
    except UNDECODABLE:
        return Raw(encode(body.decode(errors="replace")))
