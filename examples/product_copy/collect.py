"""Writes the texts into a file as they come, and ends with the last one: `python collect.py RUN FILE [--redis URL]`.

It may be killed at any moment and started again: what it has not acknowledged is given to it once more, and what the file has
already is not written twice.
"""

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

PRODUCTS = Path(__file__).with_name("products.csv")
GROUP = READER = "collect"


def written(file: Path) -> set[str]:
    """SKUs of the lines that are whole; half a line, of a run that was killed, is cut off."""
    text = file.read_bytes() if file.exists() else b""
    whole = text[: text.rfind(b"\n") + 1]
    file.write_bytes(whole)
    return {json.loads(line)["sku"] for line in whole.splitlines()}


def replies(client: redis.Redis, stream: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(entry id, reply): first what this reader was given before and has not acknowledged, then what comes."""
    after = "0"
    while True:
        found = client.xreadgroup(GROUP, READER, {stream: after}, count=100, block=1000)
        entries = [entry for _, entries in found or [] for entry in entries]
        yield from ((id, json.loads(fields["reply"])) for id, fields in entries)
        after = after if entries else ">"


def line_of(run: str, reply: dict[str, Any]) -> dict[str, Any]:
    sku = reply["task_id"].removeprefix(f"{run}-")
    if reply["status"] == "completed":
        return {"sku": sku, "text": reply["text"]}
    return {"sku": sku, "error": reply["error"]["message"]}


def collect(client: redis.Redis, run: str, file: Path, wanted: set[str]) -> None:
    stream = f"hr:reply:{run}"
    if not client.exists(stream) or not any(group["name"] == GROUP for group in client.xinfo_groups(stream)):
        client.xgroup_create(stream, GROUP, id="0", mkstream=True)
    left = wanted - written(file)
    with file.open("a") as lines:
        for id, reply in replies(client, stream) if left else ():
            line = line_of(run, reply)
            if line["sku"] in left:
                lines.write(json.dumps(line) + "\n")
                lines.flush()
                left.discard(line["sku"])
            with client.pipeline(transaction=True) as both:
                both.xack(stream, GROUP, id).xdel(stream, id).execute()
            if not left:
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("file", type=Path)
    parser.add_argument("--redis", default="redis://127.0.0.1:6379")
    arguments = parser.parse_args()
    with PRODUCTS.open(newline="") as lines:
        wanted = {product["sku"] for product in csv.DictReader(lines)}
    with redis.Redis.from_url(arguments.redis, decode_responses=True, protocol=2) as client:
        collect(client, arguments.run, arguments.file, wanted)
    print(f"{len(wanted)} products in {arguments.file}")


if __name__ == "__main__":
    main()
