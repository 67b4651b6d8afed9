"""The native twin of the OpenAI routes: submit now, ask later, from anywhere."""

import asyncio
import re

from msgspec import Raw, Struct
from starlette.types import Receive, Scope, Send

from services.ingress import metrics
from services.ingress.answers import Waiting, respond_result
from services.ingress.auth import Auth, may_see
from services.ingress.http import Endpoint, header, query, read_body, respond
from services.ingress.places import tell_places
from shared import request
from shared.bus.client import Bus
from shared.bus.tail import Tails
from shared.cancel import Canceller
from shared.config import Config
from shared.errors import ErrorBody, InvalidRequest, NotEnded, TaskNotFound
from shared.ids import place_of
from shared.keys import ShardKeys, keys_of, shard_keys
from shared.large import Large
from shared.lifecycle import Lane, State
from shared.messages import NULL, elsewhere, encode
from shared.payer import Payer
from shared.place import Outlooks, Why
from shared.record import FIELDS, Attempt, Record, parse_record
from shared.submit import Submitter

LONGEST_WAIT_S = 60.0
"""Of one long poll: under the idle limit of most proxies."""
LONGEST_PAGE = 100

_NUMBER = re.compile(r"[0-9]{1,9}")
"""What `int` takes for sure: not so other digits of Unicode, nor thousands of them."""


class TaskView(Struct, kw_only=True, omit_defaults=True, tag_field="object", tag="task"):
    """A task as clients see it. Times are Unix milliseconds."""

    id: str
    status: State
    model: str
    alias: str = ""
    """What the client called the model, when that was an alias; the branch of it that serves the task is the `variant`."""
    variant: str = ""
    route: str
    lane: Lane
    tenant: str
    created_at_ms: int
    deadline_ms: int = 0
    position: int = 0
    """In the order of expected starts of its shard, while it waits; 1: next of all, 0: in no line."""
    eta_ms: int | None = None
    """Until it is expected to start; none: unknown, or it does not wait."""
    waits_for: Why | None = None
    due_ms: int = 0
    """Its `not_before`, or when it is tried again."""
    started_at_ms: int = 0
    first_token_at_ms: int = 0
    finished_at_ms: int = 0
    attempt: int = 0
    worker: str = ""
    stop: str = ""
    """`cancelled` or `expired`: the worker has been told to end it so."""
    failures: int = 0
    """Attempts that the engine refused or failed, and that count."""
    crashes: int = 0
    """Workers and engines that died on it."""
    history: list[Attempt] = []
    """The attempts that have ended, in order."""
    requeued_from: str = ""
    """The dead task that this one repeats."""
    shadow_of: str = ""
    """The task that this one copies."""
    session: str = ""
    user: str = ""
    task_id: str = ""
    """The producer's own id."""
    cache: str = ""
    """`hit` or `followed`: it is the answer of another task."""
    finish_reason: str | None = None
    usage: Raw = NULL
    result: Raw = NULL
    """The engine's answer; if that is not JSON, or too large for Redis, its `content_type`, `bytes` and `url`."""
    error: ErrorBody | None = None
    context: Raw = NULL
    metadata: Raw = NULL
    links: dict[str, str]


class Links:
    """Where a task is found, at this door and at the notifier's."""

    def __init__(self, notifier_url: str) -> None:
        self._push_url = notifier_url.rstrip("/")
        self.socket = f"ws{self._push_url.removeprefix('http')}/v1/ws"

    def of(self, task_id: str) -> dict[str, str]:
        return {
            "self": f"/v1/tasks/{task_id}",
            "events": f"{self._push_url}/v1/tasks/{task_id}/events",
            "ws": self.socket,
        }


class Tasks:
    """Whoever has proved who it is sees its own tenant's tasks, and no others."""

    def __init__(
        self, bus: Bus, config: Config, links: Links, tails: Tails, submitter: Submitter, large: Large, auth: Auth
    ) -> None:
        self._bus, self._config, self._tails, self._submitter, self._auth = bus, config, tails, submitter, auth
        self._canceller, self._links, self._large = Canceller(bus, config), links, large
        self._outlooks = Outlooks(bus, config.limits)
        self.submit = Endpoint("/v1/tasks", self._submit)
        self.show = Endpoint("/v1/tasks/{id}", self._show)
        self.cancel = Endpoint("/v1/tasks/{id}/cancel", self._cancel)
        self.list = Endpoint("/v1/tasks", self._list)
        self.result = Endpoint("/v1/tasks/{id}/result", self._bytes)

    async def _submit(self, scope: Scope, receive: Receive, send: Send) -> None:
        payer = self._auth.payer(scope)
        body = await read_body(scope, receive, self._config.limits.body_bytes)
        asked = request.from_json(self._config, payer, body, key=header(scope, b"idempotency-key"))
        submitted = await self._submitter.submit(asked, self._submitter.new_id(asked))
        if submitted.new:
            metrics.SUBMITTED.labels(place_of(submitted.id).pool, asked.task.lane).inc()
        await respond_accepted(send, submitted.id, submitted.state, self._links)

    async def _show(self, scope: Scope, receive: Receive, send: Send) -> None:
        task_id = scope["path_params"]["id"]
        payer = self._auth.payer(scope)
        wait_s = _seconds(query(scope, {"wait": "0"})["wait"])
        record = await self._record(task_id, payer)
        if wait_s and not record.state.terminal:
            await self._wait(task_id, wait_s)
            record = await self._record(task_id, payer)
        view = self._view(task_id, record)
        await tell_places(self._outlooks, [view])
        if record.finished is not None:
            view.result = await self._result(task_id, record)
        await respond(send, 200, encode(view), headers=[(b"x-headrace-task", task_id.encode())])

    async def _bytes(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The result as the engine made it, with its content type and status: what is not JSON, or large, is had here alone."""
        task_id, payer = scope["path_params"]["id"], self._auth.payer(scope)
        query(scope, {})
        record = await self._record(task_id, payer)
        if not record.state.terminal:
            raise NotEnded(task_id, record.state)
        if record.finished is None:
            raise TaskNotFound(task_id)
        headers = [(b"x-headrace-task", task_id.encode())]
        await respond_result(send, self._bus, self._large, task_id, record.finished, headers)

    async def _cancel(self, scope: Scope, receive: Receive, send: Send) -> None:
        """200 with the state after it; 202 for a task that is not here yet, and is not going to run when it comes."""
        task_id, payer = scope["path_params"]["id"], self._auth.payer(scope)
        if payer.named and (record := await self._find(task_id)) is not None and not may_see(payer, record.task.tenant):
            raise TaskNotFound(task_id)
        cancelled = await self._canceller.cancel(task_id)
        answer = {"id": task_id, "object": "task", "status": cancelled.state, "known": cancelled.known}
        body = encode({**answer, "links": self._links.of(task_id)})
        await respond(send, 200 if cancelled.known else 202, body, headers=[(b"x-headrace-task", task_id.encode())])

    async def _list(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The newest tasks first, of the tenant or of one session, over all shards."""
        payer = self._auth.payer(scope)
        asked = query(scope, {"limit": "20", "session": ""})
        limit = page_limit(asked["limit"])
        session = request.check_name("session", asked["session"])
        indexes = [
            shard.session(session) if session else shard.tenant(payer.tenant) for shard in shards_of(self._config)
        ]
        pages = await asyncio.gather(*(self._newest(index, limit) for index in indexes))
        newest = sorted((item for page in pages for item in page), reverse=True)[:limit]
        records = await asyncio.gather(*(self._find(task_id) for _, task_id in newest))
        views = [
            self._view(task_id, record)
            for (_, task_id), record in zip(newest, records, strict=True)
            if record is not None and may_see(payer, record.task.tenant)
        ]
        await tell_places(self._outlooks, views)
        await respond(send, 200, encode({"object": "list", "data": views, "links": {"ws": self._links.socket}}))

    # -- parts

    async def _newest(self, index: str, limit: int) -> list[tuple[float, str]]:
        found = await self._bus.read("ZREVRANGE", index, 0, limit - 1, "WITHSCORES")
        return [(float(at_ms), task_id.decode()) for task_id, at_ms in zip(found[::2], found[1::2], strict=True)]

    async def _find(self, task_id: str) -> Record | None:
        keys, _ = keys_of(task_id)
        return parse_record(await self._bus.read("HMGET", keys.task(task_id), *FIELDS))

    async def _record(self, task_id: str, payer: Payer) -> Record:
        """Raises: InvalidTaskId, TaskNotFound."""
        record = await self._find(task_id) if self._tails.of(place_of(task_id)) is not None else None
        if record is None or not may_see(payer, record.task.tenant):
            raise TaskNotFound(task_id)
        return record

    async def _wait(self, task_id: str, wait_s: float) -> None:
        with Waiting(self._bus, self._tails, task_id) as answer:
            await asyncio.wait([answer.finished], timeout=wait_s)

    async def _result(self, task_id: str, record: Record) -> Raw:
        if record.state is not State.COMPLETED:
            return NULL
        keys, _ = keys_of(task_id)
        if record.finished is not None and (stored := record.finished.stored) is not None:
            return Raw(encode(elsewhere(task_id, stored.bytes, record.finished.content_type)))
        if record.finished is not None and (kind := record.finished.content_type):
            size = await self._bus.read("HSTRLEN", keys.task(task_id), "result")
            return Raw(encode(elsewhere(task_id, size, kind))) if size else NULL
        result = await self._bus.read("HGET", keys.task(task_id), "result")
        return Raw(result) if result else NULL

    def _view(self, task_id: str, record: Record) -> TaskView:
        task, finished = record.task, record.finished
        return TaskView(
            id=task_id,
            status=record.state,
            model=task.model,
            alias=task.alias,
            variant=task.variant,
            route=task.route,
            lane=task.lane,
            tenant=task.tenant,
            created_at_ms=record.created_at_ms,
            deadline_ms=record.deadline_ms,
            started_at_ms=record.started_at_ms,
            first_token_at_ms=record.first_token_at_ms,
            finished_at_ms=record.finished_at_ms,
            attempt=record.attempt,
            worker=record.worker,
            stop=record.stop,
            failures=record.failures,
            crashes=record.crashes,
            history=record.history,
            requeued_from=task.requeued_from,
            shadow_of=task.shadow_of,
            session=task.session,
            user=task.user,
            task_id=task.task_id,
            cache=finished.cache if finished else "",
            finish_reason=finished.finish_reason if finished else None,
            usage=finished.usage if finished else NULL,
            error=finished.error if finished else None,
            context=task.context,
            metadata=task.metadata,
            links=self._links.of(task_id),
        )


def shards_of(config: Config) -> list[ShardKeys]:
    return [shard_keys(name, number) for name, pool in config.pools.items() for number in range(pool.shards)]


async def respond_accepted(send: Send, task_id: str, state: State, links: Links, **more: str) -> None:
    answer = {"id": task_id, "object": "task", "status": state, **more, "links": links.of(task_id)}
    headers = [(b"x-headrace-task", task_id.encode()), (b"location", f"/v1/tasks/{task_id}".encode())]
    await respond(send, 202, encode(answer), headers=headers)


def _seconds(text: str) -> float:
    try:
        wait_s = float(text)
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s <= LONGEST_WAIT_S:
        raise InvalidRequest(f"`wait` is {text[:40]!r}; allowed: 0 to {LONGEST_WAIT_S:g} seconds", param="wait")
    return wait_s


def page_limit(text: str, longest: int = LONGEST_PAGE) -> int:
    """Raises: InvalidRequest."""
    if not _NUMBER.fullmatch(text) or not 1 <= int(text) <= longest:
        raise InvalidRequest(f"`limit` is {text[:40]!r}; allowed: 1 to {longest}", param="limit")
    return int(text)
