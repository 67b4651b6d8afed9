"""How errors look to a client of the HTTP door."""

import pytest
from redis.exceptions import OutOfMemoryError

from services.ingress.http import error_of
from shared.bus.connection import translate
from shared.errors import (
    BacklogFull,
    BusUnavailable,
    ClusterRedirect,
    ConnectionLost,
    HeadraceError,
    MemoryFull,
    NotConfirmed,
    WrongKeyType,
)


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (MemoryFull("Redis uses 83% of its maxmemory"), 503, "memory_full", b"5"),
        (BusUnavailable("submit: gone"), 503, "bus_unavailable", b"2"),
        (ConnectionLost("a read whose connection broke"), 503, "bus_unavailable", b"2"),
        (NotConfirmed("WAIT counts [0] copies"), 503, "bus_unavailable", b"2"),
        (BacklogFull("smol", "normal", 10), 429, "backlog_full", b"5"),
        (WrongKeyType("the key x"), 500, "wrong_key_type", None),
        (ClusterRedirect("MOVED 1 h:1"), 500, "internal_error", None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_has_a_status_a_code_and_a_hint_when_to_retry(
    error: HeadraceError, status: int, code: str, retry_after: bytes | None
) -> None:
    found, body, headers = error_of(error)
    assert (found, body.code, dict(headers).get(b"retry-after")) == (status, code, retry_after)


def test_redis_that_refuses_for_want_of_memory_is_told_as_full() -> None:
    refused = translate(OutOfMemoryError("command not allowed", status_code="OOM"))
    assert error_of(refused)[1].code == "memory_full"
