"""When leases may be acted on: after a silence of Redis their holders are heard first, but not for ever."""

import pytest

from services.scheduler import grace as module
from services.scheduler.grace import Grace

LEASE_S, INTERVAL_S = 10.0, 1.0


class Clock:
    """Ours and that of Redis."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ours_s, self.redis_s = 100.0, 5000.0
        self.grace = Grace(LEASE_S)
        monkeypatch.setattr(module, "monotonic_s", lambda: self.ours_s)

    def pass_(self, seconds: float = INTERVAL_S, *, redis_s: float | None = None) -> bool:
        self.ours_s += seconds
        self.redis_s += seconds if redis_s is None else redis_s
        return self.grace.is_over(self.redis_s, INTERVAL_S)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Undisturbed for as long as the holders are given."""
    clock = Clock(monkeypatch)
    assert [clock.pass_() for _ in range(6)] == [False] * 5 + [True]
    return clock


def test_in_quiet_times_leases_are_acted_on_at_every_pass(clock: Clock) -> None:
    assert all(clock.pass_() for _ in range(20))


def test_small_delays_are_tolerated(clock: Clock) -> None:
    assert all(clock.pass_(3.4) for _ in range(5))


@pytest.mark.parametrize(
    ("ours_s", "redis_s"),
    [(12.0, 12.0), (1.0, 3600.0), (1.0, -3600.0)],
    ids=["redis was away", "its clock was set forward", "its clock was set back"],
)
def test_after_a_disturbance_holders_are_heard_for_half_a_lease(clock: Clock, ours_s: float, redis_s: float) -> None:
    assert not clock.pass_(ours_s, redis_s=redis_s)
    assert [clock.pass_() for _ in range(6)] == [False] * 4 + [True, True]


def test_disturbances_without_end_do_not_keep_lost_tasks_for_ever(clock: Clock) -> None:
    assert any(clock.pass_(4.0) for _ in range(4))
