"""A stand-in for Ollama, which comes from no registry: its door, and behind it a real model in llama.cpp, as Ollama has it.

    python -m tests.support.ollama PORT      until its standard input ends

The door is that of Ollama's OpenAI API, as far as a client of chats sees it:
    - models have a tag, `latest` where none is said, and one that is not pulled is a 404
    - an answer bears one of 999 ids, and tells its usage in a stream only where it is asked to
"""

import json
import os
import random
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.llama_cpp import serve
from tests.support.ports import free_port

PULLED = "smollm2:135m"
TYPES = {400: "invalid_request_error", 404: "not_found_error"}


def failed(status: int, message: str) -> Response:
    error = {"message": message, "type": TYPES.get(status, "api_error"), "param": None, "code": None}
    return JSONResponse({"error": error}, status)


class Door:
    def __init__(self, runner: str) -> None:
        self._runner = httpx.AsyncClient(base_url=runner, timeout=60)
        self.app = Starlette(
            routes=[Route("/v1/chat/completions", self.chat, methods=["POST"]), Route("/v1/models", self.models)]
        )

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": PULLED, "object": "model", "owned_by": "library"}]})

    async def chat(self, request: Request) -> Response:
        asked = await request.json()
        if not asked.get("messages"):
            return failed(400, "[] is too short - 'messages'")
        if asked["model"] != PULLED:
            return failed(404, f"model '{asked['model']}' not found")
        head = {"id": f"chatcmpl-{random.randrange(999)}", "model": PULLED, "system_fingerprint": "fp_ollama"}
        if asked.get("stream"):
            return StreamingResponse(self._frames(asked, head), media_type="text/event-stream")
        answer = await self._runner.post("/v1/chat/completions", json=asked)
        told = answer.json()
        if answer.status_code != 200:
            return failed(answer.status_code, told["error"]["message"])
        return JSONResponse({name: told[name] for name in ("object", "created", "choices", "usage")} | head)

    async def _frames(self, asked: dict[str, Any], head: dict[str, Any]) -> AsyncIterator[bytes]:
        async with self._runner.stream("POST", "/v1/chat/completions", json=asked) as answer:
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    yield b"data: [DONE]\n\n"
                elif line.startswith("data: "):
                    told = json.loads(line.removeprefix("data: "))
                    for choice in told["choices"]:
                        choice["delta"] = {"role": "assistant", "content": choice["delta"].get("content") or ""}
                    kept = {name: told[name] for name in ("object", "created", "choices", "usage") if name in told}
                    yield b"data: %b\n\n" % json.dumps(head | kept, separators=(",", ":")).encode()


def end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    port = free_port()
    running = serve(port, PULLED)
    threading.Thread(target=end_with_input, daemon=True).start()
    uvicorn.run(Door(f"http://127.0.0.1:{port}").app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
