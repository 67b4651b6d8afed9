"""Runs calls of an application, in the application's own environment: python calling.py SCRIPT WORD...

SCRIPT has a function `calls`, which takes the words and returns calls by name; a call may be async. A line for each goes to
stdout: {"name", "result"} or {"name", "error"}. The last line, `elsewhere`, has the hosts that were tried beyond this machine:
each try fails. Needs nothing but the standard library.
"""

import asyncio
import inspect
import json
import runpy
import sys
from collections.abc import Callable
from typing import Any

HERE = {"127.0.0.1", "::1", "localhost", "0.0.0.0", None}


def stay_here() -> list[str]:
    """The hosts that will have been tried."""
    tried: list[str] = []

    def look(event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            host = args[0]
        elif event == "socket.connect" and isinstance(args[1], tuple):
            host = args[1][0]
        else:
            return
        host = host.decode() if isinstance(host, bytes) else host
        if host not in HERE:
            tried.append(str(host))
            raise ConnectionRefusedError(f"{host} is beyond this machine")

    sys.addaudithook(look)
    return tried


def outcome(call: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    try:
        result = call()
        return {"result": loop.run_until_complete(result) if inspect.iscoroutine(result) else result}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the application would see
        told = {name: getattr(error, name) for name in ("status_code", "code", "param", "type") if hasattr(error, name)}
        return {"error": {"class": type(error).__name__, **told, "message": str(error)}}


def main(script: str, *words: str) -> None:
    tried = stay_here()
    calls: dict[str, Callable[[], Any]] = runpy.run_path(script)["calls"](*words)
    loop = asyncio.new_event_loop()
    for name, call in calls.items():
        print(json.dumps({"name": name, **outcome(call, loop)}), flush=True)
    print(json.dumps({"name": "elsewhere", "result": tried}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
