"""Time, in one place, so that units are in names and a test can hold it."""

import time


def now_ms() -> int:
    """Wall time, Unix epoch in milliseconds. State in Redis uses Redis' own time; this is for ids, logs and documents."""
    return time.time_ns() // 1_000_000


def monotonic_s() -> float:
    return time.perf_counter()
