"""Asks for the text of each product: one entry of a Redis stream each. `python send.py RUN [--redis URL]`."""

import argparse
import csv
import json
from pathlib import Path

import redis

PRODUCTS = Path(__file__).with_name("products.csv")
DOOR = "hr:requests"


def entry(run: str, product: dict[str, str]) -> dict[str | bytes, str]:
    """The task_id makes an entry that is sent again the same task, so a run can be repeated after whatever went wrong."""
    return {
        "template_id": "product_copy",
        "input_text": product["facts"],
        "context": json.dumps(product),
        "task_id": f"{run}-{product['sku']}",
        "session": run,
        "reply_to": run,
        "priority": "low",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="names the session, the reply stream and the tasks")
    parser.add_argument("--redis", default="redis://127.0.0.1:6379")
    arguments = parser.parse_args()
    with PRODUCTS.open(newline="") as lines, redis.Redis.from_url(arguments.redis) as client:
        pipeline = client.pipeline(transaction=False)
        for product in csv.DictReader(lines):
            pipeline.xadd(DOOR, entry(arguments.run, product))
        print(f"{len(pipeline.execute())} products sent")


if __name__ == "__main__":
    main()
