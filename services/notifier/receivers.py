"""How much a receiver of webhooks is given, so that one which is slow, full or dead costs the others nothing.

    open ──FAILURES in a row──> rests ──over──> one delivery asks ──2xx──> open
                                  ^                    └── else ──┐
                                  └───────────────────────────────┘

A receiver may have SLOTS deliveries under way and HELD in this replica; the next ones come again later, each time after twice as
long. A crowd, all receivers that one tenant names by URL, has TENANT_SLOTS and TENANT_HELD: a name costs nothing, and by a thousand
that hang one tenant would hold all sockets, all threads that resolve names, and all memory.

Rejected: a queue of each in memory, which an endpoint that hangs would fill for ever; one bound for all, which it would fill for
everybody; telling each when its turn will be, because how fast a receiver is cannot be seen in a burst.
"""

import asyncio
import random
from collections.abc import Callable
from functools import partial

SLOTS = 8
"""Requests at once. More is no politeness, fewer makes a far receiver slow: 8 at 100 ms are 80 a second, for each replica."""
HELD = 1000
"""Deliveries of it in memory, with those that are under way: enough to keep it busy until others come again."""
TENANT_SLOTS, TENANT_HELD = 32, 2000
FAILURES = 5
FIRST_REST_S, LONGEST_REST_S = 1.0, 60.0
ASKING_S = 1.0
"""Until a delivery is tried again that finds another one asking."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 300.0
"""For a delivery that there is no room for. At the longest, 100,000 of them come again 400 times a second."""
KNOWN = 1000
"""Receivers that are remembered. One that is forgotten counts as open."""


class Receiver:
    def __init__(self, clock: Callable[[], float], slots: int = SLOTS, most_held: int = HELD) -> None:
        """`clock`: seconds, of any beginning."""
        self._clock, self._most_held = clock, most_held
        self.slots = asyncio.Semaphore(slots)
        self.held = 0
        self._posting = self._failures = 0
        self._rests_until_s = 0.0

    @property
    def full(self) -> bool:
        return self.held >= self._most_held

    @property
    def rest_s(self) -> float:
        """How long it is to be left in peace; 0: it may be sent to."""
        left_s = max(0.0, self._rests_until_s - self._clock())
        asking = self._failures >= FAILURES and self._posting > 0
        return max(left_s, ASKING_S) if asking else left_s

    def begins(self) -> None:
        self._posting += 1

    def ends(self, *, failed: bool | None, wait_s: float = 0.0) -> None:
        """`failed`: None if it is not known. `wait_s`: the receiver asks for so much time."""
        self._posting -= 1
        if failed is None:
            return
        self._failures = self._failures + 1 if failed else 0
        rest_s = wait_s
        if self._failures >= FAILURES:
            longest_s = min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** (self._failures - FAILURES))
            rest_s = max(rest_s, random.uniform(longest_s / 2, longest_s))
        if rest_s:
            self._rests_until_s = max(self._rests_until_s, self._clock() + rest_s)


class Receivers:
    def __init__(self, clock: Callable[[], float], slots: int = SLOTS, most_held: int = HELD) -> None:
        self._make = partial(Receiver, clock, slots, most_held)
        self._known: dict[str, Receiver] = {}

    def of(self, name: str) -> Receiver:
        receiver = self._known.pop(name, None) or self._make()
        self._known[name] = receiver  # the last one used is the last one forgotten
        if len(self._known) > KNOWN:
            unused = (name for name, other in self._known.items() if other is not receiver and not other.held)
            if (oldest := next(unused, None)) is not None:
                del self._known[oldest]
        return receiver


def pause_s(waited: int) -> float:
    """How long a delivery must wait that there is no room for; `waited`: how often it has already."""
    longest_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(waited, 20))
    return random.uniform(longest_s / 2, longest_s)
