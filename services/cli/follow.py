"""How far a watcher has come, task by task: what to ask for after a lost connection, and what it has seen before."""

from collections.abc import Iterable
from typing import Any

Message = dict[str, Any]
SESSION_ID = 0


class Gap(Exception):
    """Chunks are missing: subscribe again from the own cursor."""


class Following:
    def __init__(self, tasks: Iterable[str], session: str) -> None:
        self._waiting = dict(enumerate(dict.fromkeys(tasks), 1))
        self._session = session
        self._cursors: dict[str, str] = {}
        self._last: dict[str, int] = {}
        self.failed = False

    @property
    def over(self) -> bool:
        """Nothing more will come. A session never ends."""
        return not self._session and not self._waiting

    def subscriptions(self) -> list[Message]:
        """To send after each hello."""
        if self._session:
            return [{"t": "sub", "id": SESSION_ID, "session": self._session, "after": self._cursors}]
        return [
            {"t": "sub", "id": id, "task": task, "after": self._cursors.get(task, "0")}
            for id, task in self._waiting.items()
        ]

    def take(self, message: Message) -> str | None:
        """The task that the message tells something new of ("" for the connection as a whole), else None. Raises: Gap."""
        task = message.get("task") or self._waiting.get(message.get("id", SESSION_ID), "")
        match message["t"]:
            case "sync" | "reset":
                self._last[task] = message["n"]
            case "d":
                last = self._last.get(task, 0)
                if message["n"] <= last:
                    return None
                if message["f"] != last + 1:
                    raise Gap(f"{task}: chunk {message['f']} after {last}")
                self._last[task] = message["n"]
            case "done" | "fail" | "err":
                self._end(task, message)
                return str(task)
        if cursor := message.get("c"):
            self._cursors[task] = cursor
        return str(task)

    def _end(self, task: str, message: Message) -> None:
        self.failed |= message["t"] != "done"
        self._waiting.pop(message.get("id", SESSION_ID), None)
        self._cursors.pop(task, None)
        self._last.pop(task, None)
