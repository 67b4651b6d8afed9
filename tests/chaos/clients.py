"""Clients of every door, written by the documents: they retry with their key, elsewhere and after a growing pause."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from tests.chaos.cluster import Cluster
from tests.chaos.history import History, Story, Ticket
from tests.chaos.pages import Watcher, cancel_over_socket
from tests.chaos.stream_door import StreamDoor
from tests.chaos.tickets import MAX_TOKENS, PROMPTS

LONG_POLL_S = 10
SESSION_TASKS = 60
"""Of one session: what a page names when it comes back has to fit into a message of 16 KiB."""
NOT_NOW = (429, 503)


class Session(Struct):
    """A page, and the tasks that it follows."""

    page: Watcher
    begun: int = 0
    ended: int = 0


class Clients:
    """All clients of a run."""

    def __init__(
        self,
        history: History,
        cluster: Cluster,
        door: StreamDoor,
        dice: random.Random,
        *,
        model: str,
        patience_s: float,
    ) -> None:
        """`patience_s`: of a client, for its answer."""
        self._history, self._model, self._patience_s, self._door, self._dice = history, model, patience_s, door, dice
        self._sockets = cluster.sockets()
        timeout = httpx.Timeout(patience_s / 5, connect=5)
        urls = cluster.urls("ingress")
        self._http = [httpx.AsyncClient(base_url=url, timeout=timeout, trust_env=False) for url in urls]
        self._sessions: list[Session] = []

    async def close(self) -> None:
        for session in self._sessions:
            session.page.close()
        await asyncio.gather(*(client.aclose() for client in self._http))

    async def serve(self, ticket: Ticket) -> None:
        """From the first attempt to the seen end, or until patience is out."""
        story = self._history.open(ticket)
        cancelling = asyncio.create_task(self._cancel(story))
        try:
            async with asyncio.timeout(self._patience_s):
                await self._through_door(story)
        except TimeoutError:
            self._history.note(ticket.key, "gave up", after_s=self._patience_s)
        finally:
            if not cancelling.done() and not story.acknowledged:
                cancelling.cancel()
            await asyncio.wait([cancelling])

    async def _through_door(self, story: Story) -> None:
        match story.ticket.door:
            case "background":
                await self._poll(story, await self._submit(story))
            case "watched":
                await self._watch(story, await self._submit(story))
            case "session":
                await self._watch_session(story)
            case "stream door":
                await self._door.ask(story)
            case _ if story.ticket.streamed:
                await self._ask_streamed(story)
            case _:
                await self._ask_whole(story)

    async def references(self) -> dict[str, str]:
        """Each prompt's answer while nothing is broken."""
        answers = {}
        for prompt in PROMPTS:
            ticket = Ticket(key="reference", door="bare", text=prompt, expected="", streamed=False)
            body = self._body(msgspec.structs.replace(ticket, max_tokens=MAX_TOKENS))
            answer = await self._http[0].post("/v1/chat/completions", json=body, timeout=120)
            answers[prompt] = _text_of(answer.raise_for_status().json())
        return answers

    # -- POST /v1/tasks

    async def _submit(self, story: Story, session: str = "") -> str:
        ticket = story.ticket
        envelope: dict[str, Any] = {"body": self._body(ticket), "task_id": ticket.key, **ticket.wishes}
        if session:
            envelope["session"] = session
        if ticket.expires_in_s:
            envelope["expires_in"] = ticket.expires_in_s
        answer = await self._persist(ticket.key, "POST", "/v1/tasks", json=envelope)
        id: str = answer.json()["id"]
        self._history.note(ticket.key, "acknowledged", id=id)
        return id

    async def _poll(self, story: Story, id: str) -> None:
        while True:
            task = (await self._persist(story.ticket.key, "GET", f"/v1/tasks/{id}?wait={LONG_POLL_S}")).json()
            if task.get("status") not in ("pending", "processing"):
                break
        error = task.get("error") or {}
        text = _text_of(task["result"]) if task.get("status") == "completed" else ""
        self._see(story, "poll", id=id, state=task.get("status", "missing"), text=text, code=error.get("code"))

    async def _watch(self, story: Story, id: str) -> None:
        watcher = Watcher(self._history, self._sockets, self._dice, story.ticket.key)
        self._see_watched(story, id, watcher, await watcher.follow(id))

    async def _watch_session(self, story: Story) -> None:
        session = self._session()
        session.begun += 1
        id = await self._submit(story, session.page.name)
        self._see_watched(story, id, session.page, await session.page.until_end(id))
        session.ended += 1
        if session.ended == SESSION_TASKS:
            session.page.close()

    def _session(self) -> Session:
        if not self._sessions or self._sessions[-1].begun == SESSION_TASKS:
            page = Watcher(self._history, self._sockets, self._dice, f"session-{len(self._sessions)}")
            page.follow_session()
            self._sessions.append(Session(page))
        return self._sessions[-1]

    def _see_watched(self, story: Story, id: str, watcher: Watcher, seen: Any) -> None:
        if watcher.broken:
            self._history.note(story.ticket.key, "gap", id=id, why=watcher.broken)
            return
        end = seen.end
        state = "completed" if end["t"] == "done" else end["status"]
        code = (end.get("error") or {}).get("code")
        self._see(story, "socket", id=id, state=state, text=seen.text, code=code)

    # -- the OpenAI route

    async def _ask_whole(self, story: Story) -> None:
        ticket = story.ticket
        answer = await self._persist(ticket.key, "POST", "/v1/chat/completions", **self._openai(ticket))
        id = answer.headers.get("x-headrace-task", "")
        self._history.note(ticket.key, "acknowledged", id=id)
        self._see_answer(story, id, answer.status_code, answer.json())

    def _see_answer(self, story: Story, id: str, status: int, answer: dict[str, Any]) -> None:
        if status == 200:
            self._see(story, "answer", id=id, state="completed", text=_text_of(answer))
        else:
            error = answer.get("error") or {}
            self._see(story, "answer", id=id, state=_state_of(status, error), status=status, code=error.get("code"))

    async def _ask_streamed(self, story: Story) -> None:
        """Again from the start after a break, with a key: the same task, and all of its text."""
        key, pause_s = story.ticket.key, 0.1
        while True:
            id, text = "", ""
            self._history.note(key, "submitted")
            try:
                async with self._stream(story.ticket) as answer:
                    id = answer.headers.get("x-headrace-task", "")
                    if id:
                        self._history.note(key, "acknowledged", id=id)
                    if answer.status_code != 200:
                        await answer.aread()
                        if not id and answer.status_code in NOT_NOW:
                            raise httpx.ReadError(f"{answer.status_code}")
                        self._see_answer(story, id, answer.status_code, answer.json())
                        return
                    async with aclosing(_events(answer)) as events:
                        async for event in events:
                            if "error" in event:
                                await self._on_error_event(story, id, text, event["error"])
                                return
                            text += _delta_of(event)
                self._see(story, "stream", id=id, state="completed", text=text)
                return
            except httpx.TransportError as error:
                self._history.note(key, "broken", where="stream", id=id, why=repr(error), partial=text)
                if id and story.ticket.door == "bare":
                    self._history.note(key, "left", id=id)
            await asyncio.sleep(self._dice.uniform(0, pause_s))
            pause_s = min(2.0, pause_s * 2)

    async def _on_error_event(self, story: Story, id: str, text: str, error: dict[str, Any]) -> None:
        if error.get("code") == "stream_reset":  # an OpenAI stream cannot start over: read it whole
            self._history.note(story.ticket.key, "reset", id=id, partial=text)
            await self._poll(story, id)
        else:
            state = _state_of(0, error)
            self._see(story, "stream", id=id, state=state, partial=text, code=error.get("code"))

    def _stream(self, ticket: Ticket) -> Any:
        return self._dice.choice(self._http).stream("POST", "/v1/chat/completions", **self._openai(ticket))

    def _openai(self, ticket: Ticket) -> dict[str, Any]:
        headers = {f"x-headrace-{name.replace('_', '-')}": wish for name, wish in ticket.wishes.items()}
        if ticket.door != "bare":
            headers["idempotency-key"] = ticket.key
        return {"json": self._body(ticket), "headers": headers}

    # -- parts

    def _body(self, ticket: Ticket) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._model, "messages": [{"role": "user", "content": ticket.text}]}
        if ticket.max_tokens:
            body |= {"max_tokens": ticket.max_tokens, "temperature": 0}
        return body | {"stream": True} if ticket.streamed else body

    def _see(self, story: Story, where: str, **details: Any) -> None:
        self._history.note(story.ticket.key, "seen", where=where, **details)

    async def _persist(self, key: str, method: str, path: str, **more: Any) -> httpx.Response:
        """Until there is an answer that another try would not change."""
        pause_s = 0.1
        while True:
            self._history.note(key, "submitted" if method == "POST" else "asked", path=path)
            try:
                answer = await self._dice.choice(self._http).request(method, path, **more)
            except httpx.TransportError as error:
                self._history.note(key, "broken", where=path, why=repr(error))
            else:
                ended = "x-headrace-task" in answer.headers
                if answer.status_code < 400 or ended:
                    return answer
                self._history.note(key, "refused", where=path, status=answer.status_code, said=answer.text[:300])
                if answer.status_code not in NOT_NOW:
                    raise Unexpected(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
            await asyncio.sleep(self._dice.uniform(0, pause_s))
            pause_s = min(2.0, pause_s * 2)

    async def _cancel(self, story: Story) -> None:
        ticket = story.ticket
        if ticket.cancel_after_s is None:
            return
        while not story.acknowledged:
            await asyncio.sleep(0.01)
        await asyncio.sleep(ticket.cancel_after_s)
        ids = story.ids
        way = self._dice.choice(("http", "socket", "stream")) if ids else "stream"
        self._history.note(ticket.key, "cancelling", way=way)
        if way == "stream":
            await self._door.cancel(ticket.key)
        elif way == "socket":
            await cancel_over_socket(self._dice.choice(self._sockets), ids[0])
        else:
            answer = await self._persist(ticket.key, "POST", f"/v1/tasks/{ids[0]}/cancel")
            self._history.note(ticket.key, "cancel answered", state=answer.json().get("status"))


class Unexpected(Exception):
    """An answer that no fault explains."""


async def _events(answer: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """Raises: httpx.ReadError if the stream ends without its [DONE]."""
    async for line in answer.aiter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            yield json.loads(line[6:])
    raise httpx.ReadError("the stream ended without [DONE]")


def _text_of(result: dict[str, Any]) -> str:
    return str(result["choices"][0]["message"]["content"])


def _delta_of(chunk: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def _state_of(status: int, error: dict[str, Any]) -> str:
    by_code = {"task_cancelled": "cancelled", "task_expired": "expired"}
    return by_code.get(str(error.get("code")), "failed")
