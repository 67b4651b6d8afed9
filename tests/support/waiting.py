"""The only place where tests poll: a condition, its name, and a limit."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable

from shared.clock import monotonic_s

TICK_S = 0.002
TIMEOUT_S = 30.0
"""A test that reaches it has failed, so it costs nothing as long as all is well. It has room for what may rightly take its time on a
machine under load: a process that is started again, a lease that has to end, pauses that have grown to some seconds."""

Predicate = Callable[[], object]


async def wait_until(
    predicate: Callable[[], object | Awaitable[object]], description: str, timeout_s: float = TIMEOUT_S
) -> None:
    """Return once `predicate` (which may be async) is true. Raises: AssertionError, naming `description`."""
    give_up_at_s = monotonic_s() + timeout_s
    while True:
        value = predicate()
        if await value if isawaitable(value) else value:
            return
        assert monotonic_s() < give_up_at_s, f"not within {timeout_s:g} s: {description}"
        await asyncio.sleep(TICK_S)


def wait_blocking(predicate: Predicate, description: str, timeout_s: float = TIMEOUT_S, tick_s: float = TICK_S) -> None:
    """The same, outside an event loop."""
    give_up_at_s = monotonic_s() + timeout_s
    while not predicate():
        assert monotonic_s() < give_up_at_s, f"not within {timeout_s:g} s: {description}"
        time.sleep(tick_s)
