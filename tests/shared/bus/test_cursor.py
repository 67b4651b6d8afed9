"""A cursor is opaque to clients, and stays what it was."""

import pytest

from shared.bus.cursor import START, Cursor, parse_cursor
from shared.errors import InvalidRequest


@pytest.mark.parametrize("cursor", [Cursor(), Cursor((1700000000000, 7), 3, 99)])
def test_cursor_is_read_as_it_was_written(cursor: Cursor) -> None:
    assert parse_cursor(str(cursor)) == cursor


def test_start_has_two_names() -> None:
    assert parse_cursor("") == parse_cursor("0") == Cursor(START)


@pytest.mark.parametrize(
    "text", ["x", "1", "0.0.1-1.1", "9999.0.1-1.0.0", "0.0.1-1.0.0 ", "0.0.99999999999999999-0.0.0"]
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a cursor") as caught:
        parse_cursor(text)
    assert caught.value.param == "after"
