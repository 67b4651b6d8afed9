"""Tasks that wait for a rate come back one behind the other."""

import pytest

from services.scheduler import pacing
from services.scheduler.pacing import LONGEST_S, Pacing, cost_s
from shared.errors import RateLimited
from shared.policy import Rates

TEN_A_SECOND = Rates(requests_per_s=10)


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(pacing, "monotonic_s", lambda: now[0])
    return now


def refused(wait_ms: int = 2000) -> RateLimited:
    return RateLimited("The tenant acme", 10, 10, 10, 1.0, wait_ms)


def test_each_waits_as_much_longer_as_the_rate_takes(now_s: list[float]) -> None:
    paces = Pacing()
    waits = [paces.wait_s("acme", 100, refused(), TEN_A_SECOND) for _ in range(4)]
    assert waits == pytest.approx([2.0, 2.1, 2.2, 2.3])


def test_tenants_do_not_wait_for_one_another(now_s: list[float]) -> None:
    paces = Pacing()
    assert [paces.wait_s(tenant, 1, refused(), TEN_A_SECOND) for tenant in ("a", "b")] == [2.0, 2.0]


def test_the_rates_of_the_key_count_too(now_s: list[float]) -> None:
    paces = Pacing()
    assert [paces.wait_s("acme", 1, refused(), Rates(), TEN_A_SECOND) for _ in range(2)] == pytest.approx([2.0, 2.1])


def test_each_is_looked_at_within_a_minute_and_they_do_not_come_together(now_s: list[float]) -> None:
    """What is reserved is mostly given back, and limits are raised: a task that was booked far ahead would know nothing of it."""
    paces, slow = Pacing(), Rates(tokens_per_min=6000)
    waits = [paces.wait_s("acme", 1000, refused(), slow) for _ in range(200)]
    assert waits[:6] == pytest.approx([2.0, 12.0, 22.0, 32.0, 42.0, 52.0])
    assert all(LONGEST_S / 2 <= wait <= LONGEST_S for wait in waits[6:])
    assert len({round(wait, 3) for wait in waits}) > 150


def test_what_is_past_is_forgotten(now_s: list[float]) -> None:
    paces = Pacing()
    for _ in range(50):
        paces.wait_s("acme", 1, refused(), TEN_A_SECOND)
    now_s[0] += 60
    assert paces.wait_s("acme", 1, refused(), TEN_A_SECOND) == 2.0


def test_memory_is_bounded_by_the_tenants_that_wait(now_s: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "MOST", 3)
    paces = Pacing()
    for tenant in "abcdef":
        paces.wait_s(tenant, 1, refused(), TEN_A_SECOND)
        now_s[0] += 10
    assert len(paces._next_s) <= 3


def test_the_slower_of_the_rates_counts() -> None:
    assert cost_s(Rates(requests_per_s=2, tokens_per_min=600), tokens=100) == 10.0
    assert cost_s(Rates(requests_per_s=2, tokens_per_min=600), tokens=1) == 0.5
    assert cost_s(Rates(), tokens=100) == 0.0
