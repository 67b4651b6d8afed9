"""What the benchmarks on a real model ask it, and the counters they read off its workers."""

import asyncio
import json
import random
import re
from collections.abc import Iterable

import httpx

from tests.bench.client import Connection, submitted_id

SENTENCE = """
the mill wheel turns when water runs from the river over wood and stone a man must open gate before corn can be ground to
flour in winter ice may hold it still until spring comes with rain and new work for all who live near by old road cart horse
bread fire night day house door hand light wind snow field green long short high low good bad
"""
WORDS = SENTENCE.split()
"""Each is one token of nearly every tokenizer."""


def text(words: int, chance: random.Random) -> str:
    """No two begin alike, so no prompt is found in the KV cache unless that is meant."""
    return " ".join(chance.choices(WORDS, k=words))


async def submit(
    line: Connection, model: str, prompt: str, tokens: int, *, session: str, lane: str, stream: bool
) -> str:
    """A task of exactly so many tokens. Its id."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
    }
    status, answer = await line.post("/v1/tasks", json.dumps({"body": body, "session": session, "lane": lane}).encode())
    assert status == 202, answer
    return submitted_id(answer)


async def total(urls: Iterable[str], counter: str) -> float:
    """Of all workers and labels. Raises: AssertionError if no worker has it."""
    async with httpx.AsyncClient() as client:
        said = await asyncio.gather(*(client.get(f"{url}/metrics") for url in urls))
    found = [re.findall(rf"^{counter}(?:\{{[^}}]*\}})? (\S+)$", answer.text, re.MULTILINE) for answer in said]
    assert all(found), f"no counter {counter}"
    return sum(float(value) for values in found for value in values)
