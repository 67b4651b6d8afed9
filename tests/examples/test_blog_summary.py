"""The blog page, in a real browser: what its reader sees, and what the browser never gets to see."""

import json
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import Struct
from playwright.async_api import Browser, Page, expect

from tests.architecture.sources import ROOT
from tests.examples.programs import python, serving
from tests.support.browser import chromium
from tests.support.deployment import Deployment, deployment
from tests.support.ports import free_port

pytestmark = pytest.mark.timeout(400)  # the first test fetches a browser

EXAMPLE = ROOT / "examples" / "blog_summary"
POSTS = {post["slug"]: post for post in json.loads((EXAMPLE / "posts.json").read_text())}
SLOW = """
[pools.smol]
model = "smollm2-135m-instruct"
slots = 2
[pools.smol.echo]
tokens_per_s = 30.0
[limits]
lease_s = 2.0
"""
REAL = f"""
[pools.smol]
model = "smollm2-135m-instruct"
[pools.smol.vllm]
options = {{ dtype = "float32", max-model-len = 1024, kv-cache-memory-bytes = {256 * 1024 * 1024} }}
"""
PATIENCE_MS = 90_000
PATHS = ("/", "/posts", "/summaries")


class Blog(Struct):
    url: str
    key: str
    headrace: Deployment

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Of Headrace, with the blog's key."""
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.request(method, self.headrace.http + path, headers=headers, timeout=60, **more)


def server(url: str, headrace: str, key: str) -> tuple[str, tuple[Any, ...], dict[str, str]]:
    port = url.rpartition(":")[2]
    words = ("-m", "uvicorn", "--app-dir", EXAMPLE, "server:app", "--port", port, "--log-level", "warning")
    return url, words, {"HEADRACE_URL": headrace, "HEADRACE_KEY": key}


@pytest.fixture(scope="module")
def blog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Blog]:
    key, _, lines = python("-m", "services.cli", "keys", "new", "--tenant", "blog").partition("\n")
    config = SLOW + (EXAMPLE / "headrace.toml").read_text() + lines
    folder, options = tmp_path_factory.mktemp("blog"), ("--engine", "echo", "--replicas", "inference=2")
    with deployment(folder, *options, config=config) as deployed:
        url, words, environ = server(f"http://127.0.0.1:{free_port()}", deployed.http, key)
        with serving(url, *words, environ=environ):
            yield Blog(url=url, key=key, headrace=deployed)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


def summary(slug: str) -> list[str]:
    """The words that the echo engine makes of the template."""
    return f"Sum up this post, “{POSTS[slug]['title']}”. {POSTS[slug]['text']}".split()[:100]


async def completed(page: Page, slug: str) -> None:
    await expect(page.locator(f"#{slug}.completed")).to_have_count(1, timeout=PATIENCE_MS)


async def shown(page: Page, slug: str) -> list[str]:
    return (await page.locator(f"#{slug} aside p").inner_text()).split()


async def test_a_summary_goes_on_over_a_reload_in_two_tabs_though_its_worker_is_killed(
    blog: Blog, browser: Browser
) -> None:
    context = await browser.new_context()
    page, other = await context.new_page(), await context.new_page()
    seen: list[str] = []
    page.on("request", lambda request: seen.append(f"{request.headers} {request.post_data}"))
    page.on("response", lambda response: seen.append(f"{response.headers}"))
    await page.goto(blog.url)
    await page.locator("#bread .ask").click()
    await expect(page.locator("#bread aside p")).to_contain_text("Sum up", timeout=PATIENCE_MS)
    await page.reload()
    await other.goto(blog.url)
    await expect(page.locator("#bread aside p")).to_contain_text("Sum up", timeout=PATIENCE_MS)
    for pid in blog.headrace.processes()["inference"]:
        os.kill(pid, signal.SIGKILL)
    for tab in (page, other):
        await completed(tab, "bread")
        assert await shown(tab, "bread") == summary("bread")
        assert not await tab.locator("#bread button:visible").count(), "there is nothing more to do"
    seen += [await page.evaluate("(path) => fetch(path).then((a) => a.text())", path) for path in PATHS]
    assert not any(blog.key in said for said in [*seen, await page.content()])


async def test_the_next_reader_gets_the_same_summary_from_the_cache(blog: Blog, browser: Browser) -> None:
    for _ in range(2):
        page = await (await browser.new_context()).new_page()
        await page.goto(blog.url)
        await page.locator("#night-train .ask").click()
        await completed(page, "night-train")
        assert await shown(page, "night-train") == summary("night-train")
    tasks = blog.ask("GET", "/v1/tasks?limit=100").json()["data"]
    asked = [task for task in tasks if task.get("metadata") == {"post": "night-train"}]
    assert [task.get("cache", "") for task in asked] == ["hit", ""]


async def test_who_waits_sees_the_place_in_line_and_may_cancel_and_try_again(blog: Blog, browser: Browser) -> None:
    task = {"input_text": " ".join(POSTS["bread"]["text"].split()[:90]), "priority": "high"}
    first = blog.ask("POST", "/v1/tasks", json=task).json()["id"]
    assert blog.ask("GET", f"/v1/tasks/{first}?wait=25").json()["status"] == "completed", "so a wait can be foretold"
    page = await (await browser.new_context()).new_page()
    await page.goto(blog.url)
    for _ in range(12):
        blog.ask("POST", "/v1/tasks", json=task)
    await page.locator("#small-garden .ask").click()
    state = page.locator("#small-garden .state")
    await expect(state).to_have_text(re.compile(r"^(Number \d+ in|Next in) line, about \d+ s$"), timeout=PATIENCE_MS)
    await page.locator("#small-garden .cancel").click()
    await expect(state).to_have_text("Cancelled.", timeout=PATIENCE_MS)
    await page.reload()
    await page.locator("#small-garden .ask", has_text="Try again").click()
    await completed(page, "small-garden")
    assert await shown(page, "small-garden") == summary("small-garden")


def test_what_headrace_refuses_is_told_and_so_is_that_it_is_away(blog: Blog) -> None:
    for headrace, key, status, words in (
        (blog.headrace.http, "hr_none", 401, "key"),
        (f"http://127.0.0.1:{free_port()}", blog.key, 503, "cannot be reached"),
    ):
        url, command, environ = server(f"http://127.0.0.1:{free_port()}", headrace, key)
        with serving(url, *command, environ=environ), httpx.Client(base_url=url, timeout=30) as reader:
            assert reader.post("/posts/bread/summary").status_code == 400, "it has no cookie yet"
            reader.get("/")
            assert reader.post("/posts/none/summary").status_code == 404
            for answer in (reader.post("/posts/bread/summary"), reader.get("/summaries")):
                assert answer.status_code == status
                assert words in answer.json()["message"]


@pytest.mark.vllm
@pytest.mark.timeout(600)
async def test_the_default_model_sums_up(tmp_path: Path, browser: Browser) -> None:
    config = REAL + (EXAMPLE / "headrace.toml").read_text()
    with deployment(tmp_path, "--engine", "vllm", config=config, timeout_s=240) as deployed:
        url, words, environ = server(f"http://127.0.0.1:{free_port()}", deployed.http, "")
        with serving(url, *words, environ=environ):
            page = await browser.new_page()
            await page.goto(url)
            await page.locator("#bread .ask").click()
            await completed(page, "bread")
            assert len(await shown(page, "bread")) > 8
