import pytest

from services.cli.follow import Following, Gap


def test_each_task_is_subscribed_once_from_its_start() -> None:
    following = Following(["a", "b", "a"], "")
    assert following.subscriptions() == [
        {"t": "sub", "id": 1, "task": "a", "after": "0"},
        {"t": "sub", "id": 2, "task": "b", "after": "0"},
    ]


def test_a_new_connection_goes_on_from_the_cursors() -> None:
    following = Following(["a", "b"], "")
    following.take({"t": "sync", "id": 1, "task": "a", "n": 0, "c": "c0"})
    following.take({"t": "d", "id": 1, "f": 1, "n": 2, "d": "x", "c": "c2"})
    following.take({"t": "done", "id": 2, "n": 0, "c": "end"})
    assert following.subscriptions() == [{"t": "sub", "id": 1, "task": "a", "after": "c2"}]


def test_a_session_goes_on_from_the_cursors_of_its_open_tasks() -> None:
    following = Following([], "ann")
    following.take({"t": "d", "id": 0, "task": "a", "f": 1, "n": 1, "d": "x", "c": "c1"})
    following.take({"t": "d", "id": 0, "task": "b", "f": 1, "n": 1, "d": "x", "c": "c9"})
    following.take({"t": "done", "id": 0, "task": "b", "n": 1, "c": "end"})
    assert following.subscriptions() == [{"t": "sub", "id": 0, "session": "ann", "after": {"a": "c1"}}]
    assert not following.over


def test_what_was_seen_before_is_dropped() -> None:
    following = Following(["a"], "")
    assert following.take({"t": "d", "id": 1, "f": 1, "n": 3, "d": "xyz", "c": "c3"}) == "a"
    assert following.take({"t": "d", "id": 1, "f": 2, "n": 3, "d": "yz", "c": "c3"}) is None


def test_a_gap_is_an_error() -> None:
    following = Following(["a"], "")
    with pytest.raises(Gap, match="chunk 5 after 0"):
        following.take({"t": "d", "id": 1, "f": 5, "n": 6, "d": "x", "c": "c6"})


def test_a_reset_starts_counting_anew() -> None:
    following = Following(["a"], "")
    following.take({"t": "d", "id": 1, "f": 1, "n": 3, "d": "xyz", "c": "c3"})
    following.take({"t": "reset", "id": 1, "a": 2, "n": 0, "why": "retry", "c": "r"})
    assert following.take({"t": "d", "id": 1, "f": 1, "n": 1, "d": "x", "c": "c1"}) == "a"


def test_it_is_over_when_all_have_ended_and_remembers_failures() -> None:
    following = Following(["a", "b"], "")
    following.take({"t": "fail", "id": 1, "n": 0, "status": "failed", "error": {"message": "no"}})
    assert not following.over
    following.take({"t": "done", "id": 2, "n": 0})
    assert following.over
    assert following.failed
