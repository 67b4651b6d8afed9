import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.architecture.sources import ROOT
from tests.support.deployment import Deployment, deployment

EXAMPLE = ROOT / "examples" / "recommendations"
COUNT = 600
"""Users: several batches, and the last one not full."""
TASTES = 20


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    config = (EXAMPLE / "headrace.toml").read_text()
    with deployment(tmp_path_factory.mktemp("shop"), config=config) as deployed:
        yield deployed


def python(*words: str | Path) -> str:
    """What a command of the README writes."""
    run = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    return run.stdout


def taste(name: str) -> int:
    return int(name.partition("-")[2]) % TASTES


@pytest.mark.timeout(180)
def test_the_day_of_every_user_is_made_and_repeating_it_makes_nothing_new(shop: Deployment, tmp_path: Path) -> None:
    tasks, made = tmp_path / "users.jsonl", tmp_path / "recommendations.jsonl"
    tasks.write_text(python(EXAMPLE / "users.py", "2026-11-21", str(COUNT)))
    submit = ("-m", "services.cli", "submit", tasks, "-o", made, "--url", shop.http)
    python(*submit)
    first = {answer["id"]: answer for answer in map(json.loads, made.read_text().splitlines())}
    found = {each["result"]["user"]: each["result"]["products"] for each in first.values()}
    assert sorted(found) == [f"u-{user:06}" for user in range(COUNT)]
    assert all(len({product["id"] for product in products}) == 10 for products in found.values())
    own = sum(taste(product["id"]) == taste(user) for user, products in found.items() for product in products)
    assert own > 0.8 * 10 * COUNT, "most of what is recommended is to the user's own taste, which is one of twenty"
    made.unlink()
    python(*submit)
    again = {answer["id"]: answer["result"] for answer in map(json.loads, made.read_text().splitlines())}
    assert again == {task: answer["result"] for task, answer in first.items()}


def ask(shop: Deployment, **body: Any) -> httpx.Response:
    return httpx.post(f"{shop.http}/invocations", json={"model": "recommender", **body}, timeout=60)


def test_one_user_can_be_asked_for_at_once(shop: Deployment) -> None:
    answer = ask(shop, user="u-000017", n=3)
    assert answer.status_code == 200
    assert len(answer.json()["products"]) == 3


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"user": "u-100000"}, "user is 'u-100000': expected u-000000 to u-099999"),
        ({"user": "u-000001", "n": 0}, "n is 0: expected 1 to 100"),
    ],
)
def test_what_cannot_be_recommended_is_refused_in_the_models_own_words(
    shop: Deployment, body: dict[str, Any], words: str
) -> None:
    refused = ask(shop, **body)
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, words)
