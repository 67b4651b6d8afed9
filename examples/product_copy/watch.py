"""Prints each text when it is finished, over the WebSocket: `python watch.py RUN COUNT [--ws URL]`; ends with the COUNT-th.

What it has read of each text is in `seen` with the cursor behind it: after a lost connection it asks for the rest only.
"""

import argparse
import asyncio
import json
from typing import Any

import websockets
from websockets.typing import Subprotocol

Message = dict[str, Any]
STOP = 4500
"""Close codes from here on mean that coming back is of no use."""


class Watcher:
    def __init__(self) -> None:
        self.seen: dict[str, Message] = {}
        """By task: `text`, and `cursor`, which is "end" once the task has ended."""

    def greeting(self, session: str) -> list[Message]:
        after = {task: seen["cursor"] for task, seen in self.seen.items()}
        return [{"t": "hello", "v": 1}, {"t": "sub", "id": 1, "session": session, "after": after or "0"}]

    def apply(self, message: Message) -> None:
        seen = self.seen.setdefault(message["task"], {"text": "", "cursor": "0"})
        match message["t"]:
            case "d":
                seen["text"] += message["d"]
            case "reset":
                seen["text"] = ""
            case "done":
                seen["text"] = message.get("text", seen["text"])
                print(seen["text"] + "\n", flush=True)
            case "fail":
                print(message["error"]["message"] + "\n", flush=True)
        seen["cursor"] = "end" if message["t"] in ("done", "fail") else message.get("c", seen["cursor"])

    @property
    def ended(self) -> int:
        return sum(seen["cursor"] == "end" for seen in self.seen.values())


async def watch(url: str, session: str, count: int) -> None:
    watcher = Watcher()
    async for socket in websockets.connect(url, subprotocols=[Subprotocol("headrace.v1")]):  # again, if it is lost
        try:
            await socket.send(json.dumps(watcher.greeting(session)))
            while watcher.ended < count:
                for message in json.loads(await socket.recv()):
                    if message["t"] == "ping":
                        await socket.send(json.dumps([{"t": "pong", "ts": message["ts"]}]))
                    elif "task" in message:
                        watcher.apply(message)
        except websockets.ConnectionClosed as lost:
            if lost.rcvd is not None and lost.rcvd.code >= STOP:
                raise
        else:
            return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("count", type=int)
    parser.add_argument("--ws", default="ws://127.0.0.1:8081/v1/ws")
    arguments = parser.parse_args()
    asyncio.run(watch(arguments.ws, arguments.run, arguments.count))
