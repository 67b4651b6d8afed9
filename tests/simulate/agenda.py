"""What is to happen in a simulation, in the order of its time."""

import heapq
import itertools
from collections.abc import Awaitable, Callable

Happening = Callable[[], Awaitable[None]]


class Agenda:
    """What was put down first happens first, if it is for the same millisecond."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Happening]] = []
        self._numbers = itertools.count()
        self.now_ms = 0

    @property
    def now_s(self) -> float:
        return self.now_ms / 1000

    def at(self, at_s: float, happening: Happening) -> None:
        """Not before `now_s`; times are rounded up to the millisecond, so nothing happens too early."""
        at_ms = max(self.now_ms, -int(-at_s * 1000 // 1))
        heapq.heappush(self._heap, (at_ms, next(self._numbers), happening))

    def after(self, seconds: float, happening: Happening) -> None:
        self.at(self.now_s + seconds, happening)

    def next(self) -> Happening | None:
        """The clock stands at its time then."""
        if not self._heap:
            return None
        self.now_ms, _, happening = heapq.heappop(self._heap)
        return happening
