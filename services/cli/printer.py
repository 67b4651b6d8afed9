"""Events of tasks on the terminal: text on stdout as it comes, what is about it on stderr."""

import sys

import msgspec

from services.cli.follow import Message
from services.cli.line import of_status
from services.cli.progress import Ticker


class Printer:
    def __init__(self, *, json: bool, headed: bool) -> None:
        """`headed`: name the task whenever another one goes on."""
        self._json, self._headed = json, headed
        self._current: tuple[str, int] = ("", 0)
        self._in_line = False
        self._ticker = Ticker()
        self._waiting: set[str] = set()
        """Tasks whose place was told."""

    def show(self, task: str, message: Message) -> None:
        if self._json:
            print(msgspec.json.encode({**message, "task": task} if task else message).decode(), flush=True)
            return
        if message["t"] == "st" and (place := of_status(message["info"])):
            self._place(task, place)
            return
        self._ticker.clear()
        match message["t"]:
            case "d":
                self._text(task, message.get("i", 0), message.get("d") or "")
            case "done":
                self._text(task, 0, message.get("text") or "")
                self._note(task, f"done: {message.get('finish') or 'stop'}")
                if url := (message.get("result") or {}).get("url"):
                    self._note(task, f"the answer is at {url}")
            case "fail":
                self._note(task, f"{message['status']}: {message['error']['message']}")
            case "reset":
                self._note(task, f"starts over: {message['why']}")
            case "err":
                self._note(task, f"error: {message['msg']}")

    def tell(self, text: str) -> None:
        """Something about the connection; the text on stdout is not touched by it."""
        self._ticker.clear()
        start = "\n" if self._in_line and sys.stdout.isatty() else ""
        print(start + text, file=sys.stderr, flush=True)

    def _text(self, task: str, choice: int, text: str) -> None:
        if not text:
            return
        if (task, choice) != self._current:
            self._current = (task, choice)
            if self._headed or choice:
                self._end_line()
                print(f"--- {task}" + (f" choice {choice}" if choice else ""))
        print(text, end="", flush=True)
        self._in_line = not text.endswith("\n")

    def _place(self, task: str, place: str) -> None:
        """A single task's is kept up to date, where a person sees it; else it is told once."""
        if self._ticker.live and not self._headed:
            self._end_line()
            self._ticker.show(f"[{place}]")
        elif task not in self._waiting:
            self._waiting.add(task)
            self._note(task, place)

    def _note(self, task: str, text: str) -> None:
        self._end_line()
        print(f"[{task} {text}]" if self._headed else f"[{text}]", file=sys.stderr, flush=True)

    def _end_line(self) -> None:
        if self._in_line:
            print(flush=True)
            self._in_line = False
