"""When tasks that wait for their tenant's rates are looked at again: one behind the other, as fast as the rates allow.

Asked one by one, all of them would be told the same moment, come together, and all but a few would be put off again: thousands
of waiting tasks would keep the scheduler busy with nothing.
"""

import random

from shared.clock import monotonic_s
from shared.errors import RateLimited
from shared.policy import Rates

LONGEST_S = 60.0
"""Until a task is looked at again, at the latest: by then others may have been cancelled, or have given back most of what they
reserved, or a reload has raised the rate. Longer leaves rates unused, shorter looks more often at tasks that cannot go."""
MOST = 10_000
"""Tenants that are remembered; past ones are forgotten first."""


class Pacing:
    """Of one replica. Several of them overlap: then a task is put off once more."""

    def __init__(self) -> None:
        self._next_s: dict[str, float] = {}

    def wait_s(self, tenant: str, tokens: int, refused: RateLimited, *rates: Rates) -> float:
        """Seconds until the task may be asked for again, behind those that were refused before. `rates`: all that hold for it."""
        now_s = monotonic_s()
        at_s = max(self._next_s.get(tenant, 0.0), now_s + refused.wait_s)
        if len(self._next_s) >= MOST:
            self._next_s = {name: next_s for name, next_s in self._next_s.items() if next_s > now_s}
        latest_s = now_s + LONGEST_S
        self._next_s[tenant] = min(latest_s, at_s + max(cost_s(rate, tokens) for rate in rates))
        return at_s - now_s if at_s < latest_s else random.uniform(LONGEST_S / 2, LONGEST_S)


def cost_s(rates: Rates, tokens: int) -> float:
    """How long a request of so many tokens takes up the rates."""
    by_requests = 1 / rates.requests_per_s if rates.requests_per_s else 0.0
    by_tokens = tokens * 60 / rates.tokens_per_min if rates.tokens_per_min else 0.0
    return max(by_requests, by_tokens)
