"""When leases may be acted on: those of workers, and those of clients that wait.

A lease lapses because its holder is silent, or because nobody could be heard: Redis was away, stopped, or its clock was set.
Then every lease lapses at once, and taking all tasks back would run all of them twice. So after such a time the holders are
given as long as two of their beats take; then what has lapsed is taken back, however disturbed the times are.
"""

from shared.clock import monotonic_s

TOLERATED_SHARE = 0.25
"""Of a lease: a silence that costs no holder more than one beat."""
GIVEN_SHARE = 0.5


class Grace:
    def __init__(self, lease_s: float) -> None:
        self._tolerated_s, self._given_s = lease_s * TOLERATED_SHARE, lease_s * GIVEN_SHARE
        self._seen: tuple[float, float] | None = None
        """Our clock and that of Redis at the last pass."""
        self._until_s: float | None = None

    def is_over(self, redis_s: float, interval_s: float) -> bool:
        """To be asked on every pass, `interval_s` apart, with the time that Redis tells."""
        now_s = monotonic_s()
        if self._until_s is None and self._was_disturbed(now_s, redis_s, interval_s):
            self._until_s = now_s + self._given_s
        self._seen = now_s, redis_s
        if self._until_s is not None and now_s < self._until_s:
            return False
        self._until_s = None
        return True

    def _was_disturbed(self, now_s: float, redis_s: float, interval_s: float) -> bool:
        if self._seen is None:
            return True
        ours_s, theirs_s = now_s - self._seen[0], redis_s - self._seen[1]
        return ours_s > interval_s + self._tolerated_s or abs(theirs_s - ours_s) > self._tolerated_s
