"""What becomes of an upstream's room by its answers, where it is asked, and with which key."""

from pathlib import Path

import pytest

from services.inference.breaker import FAILED_TASKS, FIRST_PAUSE_S
from services.inference.capacity import REFUSED_TASKS
from services.inference.upstreams import KEY_READ_S, LONGEST_REST_S, Key, Upstream, best
from shared.engine_options import Upstream as Options
from shared.errors import ConfigError


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def upstream(clock: Clock, url: str = "http://one", *, slots: int = 16, key_file: str = "") -> Upstream:
    return Upstream(0, Options(url=url, slots=slots, key_file=key_file), clock=clock, jitter=lambda: 1.0)


def answer(one: Upstream, task: str, status: int, rest_s: float = 0) -> None:
    one.began(task)
    one.answered(task, status, rest_s)
    one.left(task)


@pytest.mark.parametrize(
    ("url", "route", "address"),
    [
        ("http://one:8000", "/v1/chat/completions", "http://one:8000/v1/chat/completions"),
        ("http://one:8000/", "/score", "http://one:8000/score"),
        ("https://one/v1/", "/v1/responses", "https://one/v1/responses"),
        ("https://one/v1", "/v2/rerank", "https://one/v2/rerank"),
        ("https://one/openai/v1", "/v1/embeddings", "https://one/openai/v1/embeddings"),
        ("https://one/api/paas/v4", "/v1/chat/completions", "https://one/api/paas/v4/chat/completions"),
    ],
)
def test_a_url_is_read_as_an_openai_client_reads_it(clock: Clock, url: str, route: str, address: str) -> None:
    assert upstream(clock, url).address(route) == address


def test_the_one_with_the_smallest_share_of_its_slots_in_use_is_best(clock: Clock) -> None:
    small, large = upstream(clock, slots=2), upstream(clock, slots=8)
    small.began("t1")
    large.began("t2")
    large.began("t3")
    assert best([small, large]) is large
    for task in ("t4", "t5", "t6"):
        large.began(task)
    assert best([small, large]) is small
    small.began("t7")
    assert best([small]) is None


def test_refusals_of_several_tasks_cut_its_slots(clock: Clock) -> None:
    one = upstream(clock)
    for task in range(8):
        one.began(f"t{task}")
    for task in range(REFUSED_TASKS):
        assert one.slots == 16
        one.answered(f"t{task}", 429)
    assert one.slots == 4


def test_it_rests_for_as_long_as_it_asks_but_for_a_longest(clock: Clock) -> None:
    one = upstream(clock)
    answer(one, "t1", 429, rest_s=5)
    assert (one.slots, best([one])) == (0, None)
    clock.now_s += 5
    assert one.slots == 16
    answer(one, "t2", 503, rest_s=1e6)
    clock.now_s += LONGEST_REST_S
    assert one.slots == 16


def test_after_many_failures_it_gets_nothing_and_then_one_call_as_a_probe(clock: Clock) -> None:
    one = upstream(clock)
    one.began("old")
    for task in range(FAILED_TASKS):
        answer(one, f"bad{task}", 502)
    assert one.slots == 0
    clock.now_s += FIRST_PAUSE_S
    assert one.slots == 2, "the probe, beside the one from before"
    one.began("probe")
    assert not one.has_room
    one.answered("probe", 200)
    assert one.slots == 16


def test_what_cannot_be_connected_to_gets_nothing_at_once_and_then_one_call_as_a_probe(clock: Clock) -> None:
    one = upstream(clock)
    for pause_s in (FIRST_PAUSE_S, 2 * FIRST_PAUSE_S):
        one.began("t1")
        one.answered("t1", 502, unreached=True)
        one.left("t1")
        assert one.slots == 0
        clock.now_s += pause_s
        assert one.slots == 1
    answer(one, "t1", 200)
    assert one.slots == 16


def test_what_is_wrong_with_requests_says_nothing_of_it(clock: Clock) -> None:
    one = upstream(clock)
    for task in range(100):
        answer(one, f"t{task}", 400)
    assert one.slots == 16


def test_a_key_that_is_replaced_is_used_within_a_second(clock: Clock, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-one\n")
    key = Key(str(file), clock)
    file.write_text("sk-second\n")
    assert key.value == "sk-one"
    clock.now_s += KEY_READ_S
    assert key.value == "sk-second"


@pytest.mark.parametrize("broken", ["", "two words", "sk-\x00", "clé"])
def test_a_file_that_holds_no_key_is_a_fault_at_the_start_and_is_passed_over_later(
    clock: Clock, tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "key"
    file.write_text(broken)
    with pytest.raises(ConfigError, match=r"key_file .*key must hold an API key"):
        Key(str(file), clock)
    file.write_text("sk-secret")
    key = Key(str(file), clock)
    file.write_text(broken)
    clock.now_s += KEY_READ_S
    assert key.value == "sk-secret"
    assert "used on" in caplog.text
    assert "sk-secret" not in caplog.text


def test_a_key_file_that_is_missing_is_named(clock: Clock, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"key_file .*none cannot be read: No such file"):
        upstream(clock, key_file=str(tmp_path / "none"))
