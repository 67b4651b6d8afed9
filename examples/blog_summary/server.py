"""A blog whose posts can be summed up: the pages, and the one place that knows the key of Headrace.

    HEADRACE_KEY=hr_... uvicorn --app-dir examples/blog_summary server:app --port 8000

A reader's tasks belong to a session whose unguessable name is a cookie. The page follows that session at the notifier by itself;
what costs tokens goes through here. Only the slug of a post comes from the reader, so nobody uses the model for something else.
"""

import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.config import Config
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

config = Config()
HEADRACE_URL = config("HEADRACE_URL", default="http://127.0.0.1:8080")
HEADRACE_KEY = config("HEADRACE_KEY", default="")
HERE = Path(__file__).parent
POSTS = {post["slug"]: post for post in json.loads((HERE / "posts.json").read_text())}
VISITOR = "visitor"
MOST_TRIES = 100


@contextlib.asynccontextmanager
async def headrace(app: Starlette) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    headers = {"authorization": f"Bearer {HEADRACE_KEY}"} if HEADRACE_KEY else {}
    async with httpx.AsyncClient(base_url=HEADRACE_URL, headers=headers, timeout=10) as client:
        yield {"headrace": client}


async def page(request: Request) -> Response:
    response = FileResponse(HERE / "page.html")
    if VISITOR not in request.cookies:
        visitor, secure = secrets.token_urlsafe(16), request.url.scheme == "https"
        response.set_cookie(VISITOR, visitor, max_age=30 * 86_400, httponly=True, samesite="strict", secure=secure)
    return response


async def posts(request: Request) -> Response:
    return JSONResponse(list(POSTS.values()))


async def summaries(request: Request) -> Response:
    """What this reader has asked for so far, newest first, and where to follow it."""
    answer = await request.state.headrace.get("/v1/tasks", params={"session": session(request), "limit": 100})
    if answer.is_error:
        return refusal(answer)
    listed = answer.json()
    tasks = [{"task": task["id"], "post": task["metadata"]["post"]} for task in listed["data"]]
    return JSONResponse({"session": session(request), "socket": listed["links"]["ws"], "tasks": tasks})


async def summarise(request: Request) -> Response:
    """`?try=1` after one that failed or was cancelled: `task_id` makes a repeated click the same task, and so is another tab's."""
    post, number = POSTS.get(request.path_params["slug"]), request.query_params.get("try", "0")
    if post is None or not number.isdecimal() or int(number) >= MOST_TRIES:
        raise HTTPException(404, "There is no such post.")
    answer = await request.state.headrace.post("/v1/tasks", json=task_of(post, session(request), int(number)))
    if answer.is_error:
        return refusal(answer)
    return JSONResponse({"task": answer.json()["id"], "post": post["slug"]}, 202)


def task_of(post: dict[str, str], session: str, number: int) -> dict[str, Any]:
    return {
        "template_id": "summary",
        "input_text": post["text"],
        "context": {"title": post["title"]},
        "metadata": {"post": post["slug"]},
        "session": session,
        "priority": "high",
        "task_id": f"{session}-{post['slug']}-{number}",
    }


def session(request: Request) -> str:
    """Raises: HTTPException."""
    if VISITOR not in request.cookies:
        raise HTTPException(400, "The cookie of the page is missing: open it again, and let it keep one.")
    return f"blog-{request.cookies[VISITOR]}"


def refusal(answer: httpx.Response) -> Response:
    """In Headrace's own words: too many wait, the rate is used up, and the like, and when to come again."""
    again = {name: answer.headers[name] for name in ("retry-after",) if name in answer.headers}
    return JSONResponse({"message": answer.json()["error"]["message"]}, answer.status_code, again)


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"message": error.detail}, error.status_code)


async def away(request: Request, error: Exception) -> Response:
    return JSONResponse({"message": "The writer cannot be reached. Try again in a moment."}, 503, {"retry-after": "5"})


app = Starlette(
    routes=[
        Route("/", page),
        Route("/posts", posts),
        Route("/summaries", summaries),
        Route("/posts/{slug}/summary", summarise, methods=["POST"]),
    ],
    exception_handlers={HTTPException: refused, httpx.TransportError: away},
    lifespan=headrace,
)
