"""A shop's texts in bulk: sent through Redis, followed over the WebSocket, collected from the reply stream."""

import csv
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, WebSocket

from tests.architecture.sources import ROOT
from tests.examples.programs import python, running, serving
from tests.support.browser import chromium
from tests.support.deployment import Deployment, deployment
from tests.support.ports import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(400)  # the first test fetches a browser

EXAMPLE = ROOT / "examples" / "product_copy"
SLOW = """
[pools.smol]
model = "smollm2-135m-instruct"
slots = 4
[pools.smol.echo]
tokens_per_s = 16.0
[limits]
lease_s = 2.0
"""
"""So slow that a text is seen growing: more than a second each, four at once."""
PATIENCE_MS = 90_000
GROWING = """(() => {
    const found = Object.keys(tasks).filter((id) => tasks[id].status === "processing" && tasks[id].text.length > 20);
    return found.length && found;
})()"""
"""In the page: the texts that have begun to grow, once there are some."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    config = SLOW + (EXAMPLE / "headrace.toml").read_text()
    options = ("--engine", "echo", "--replicas", "inference=2")
    with deployment(tmp_path_factory.mktemp("shop"), *options, config=config) as deployed:
        yield deployed


def texts() -> dict[str, list[str]]:
    """By SKU, the words that the echo engine makes of the template."""
    with (EXAMPLE / "products.csv").open(newline="") as lines:
        products = list(csv.DictReader(lines))
    return {each["sku"]: f"Write about the {each['kind']} {each['name']}. {each['facts']}".split() for each in products}


def written(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


async def test_every_text_is_collected_once_though_a_worker_and_the_reader_are_killed(
    shop: Deployment, tmp_path: Path
) -> None:
    run, file = "spring", tmp_path / "texts.jsonl"
    send = (EXAMPLE / "send.py", run, "--redis", shop.redis)
    collect = (EXAMPLE / "collect.py", run, file, "--redis", shop.redis)
    with running(EXAMPLE / "watch.py", run, str(len(texts())), "--ws", shop.ws) as watcher:
        with running(*collect):
            assert python(*send) == f"{len(texts())} products sent\n"
            await wait_until(lambda: len(written(file)) >= 3, "three texts are in the file", timeout_s=90)
            os.kill(shop.processes()["inference"][0], signal.SIGKILL)
        file.write_bytes(file.read_bytes() + b'{"sku": "T-1')  # as if it had been killed in the middle of a line
        python(*send)
        python(*collect)
        seen, _ = watcher.communicate(timeout=90)
    found = {line["sku"]: line["text"].split() for line in written(file)}
    assert found == texts()
    assert len(written(file)) == len(texts())
    assert sorted(text.split() for text in seen.split("\n\n") if text) == sorted(texts().values())


def spoken(page: Page) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(sent, received): the messages of the page's sockets, from here on."""
    sent: list[dict[str, Any]] = []
    received: list[dict[str, Any]] = []

    def follow(socket: WebSocket) -> None:
        socket.on("framesent", lambda frame: sent.extend(json.loads(frame)))
        socket.on("framereceived", lambda frame: received.extend(json.loads(frame)))

    page.on("websocket", follow)
    return sent, received


async def test_the_page_goes_on_after_a_reload_and_over_the_end_of_a_worker(shop: Deployment) -> None:
    site = f"http://127.0.0.1:{free_port()}"
    folder = ("-m", "http.server", site.rpartition(":")[2], "--bind", "127.0.0.1", "--directory", EXAMPLE / "page")
    with serving(site, *folder):
        async with chromium() as browser:
            page = await browser.new_page()
            page.set_default_timeout(PATIENCE_MS)
            await page.goto(f"{site}/?session=autumn&http={shop.http}&ws={shop.ws}")
            python(EXAMPLE / "send.py", "autumn", "--redis", shop.redis)
            growing = await (await page.wait_for_function(GROWING)).json_value()
            sent, received = spoken(page)
            await page.reload()
            os.kill(shop.processes()["inference"][0], signal.SIGKILL)
            await page.wait_for_function(
                f"Object.values(tasks).filter(t => t.cursor === 'end').length === {len(texts())}"
            )
            shown = await page.locator("article").evaluate_all("all => all.map(e => e.querySelector('p').textContent)")
            assert await page.locator(".completed").count() == len(texts())
            assert await page.locator("#count").inner_text() == f"{len(texts())} of {len(texts())}"
    assert sorted(text.split() for text in shown) == sorted(texts().values())
    (after,) = [message["after"] for message in sent if message["t"] == "sub"]
    resumed = {message["task"] for message in received if message["t"] == "sync" and message["mode"] == "resume"}
    assert all(after[task] == "end" or task in resumed for task in growing)
