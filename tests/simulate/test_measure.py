"""Figures of recordings that are small enough to know them by heart."""

import pytest

from shared.lifecycle import Lane, State
from tests.simulate import measure
from tests.simulate.recording import Recording, Stint, Told
from tests.simulate.trace import Row


def told(tenant: str, arrival_s: float, started_s: float, *, lane: Lane = Lane.NORMAL, eta_s: float = 0.0) -> Told:
    row = Row(arrival_s=arrival_s, tenant=tenant, lane=lane, tokens_in=50, tokens_out=50)
    return Told(row, f"{tenant}{arrival_s}", "", eta_s, started_s, started_s + 10, State.COMPLETED)


def recording(*tasks: Told) -> Recording:
    stints = [Stint(n, "w0", t.started_s or 0.0, t.ended_s or 0.0, 100, True) for n, t in enumerate(tasks)]
    ended_s = max(stint.ended_s for stint in stints)
    return Recording(1, 1, {"a": 3.0, "b": 1.0}, {}, [*tasks], stints, [(0.0, 2)], ended_s=ended_s)


def test_contested_is_the_longest_time_in_which_all_wait() -> None:
    made = recording(told("a", 0, 8), told("b", 5, 30), told("a", 12, 40), told("a", 41, 42))
    assert measure.contested(made, ["a", "b"]) == (12, 30)


def test_nothing_is_contested_if_they_never_wait_together() -> None:
    made = recording(told("a", 0, 5), told("b", 6, 9))
    assert measure.contested(made, ["a", "b"]) == (0.0, 0.0)


def test_tokens_count_as_far_as_their_stint_lies_in_the_window() -> None:
    made = recording(told("a", 0, 0), told("b", 0, 5))  # each 10 tokens a second
    a, b = measure.shares(made, (5, 10), ["a", "b"])
    assert (a.tokens, b.tokens) == (50, 50)
    assert a.ideal == 0.75
    assert a.error == pytest.approx(0.5 / 0.75 - 1)


def test_slots_in_use_are_those_of_the_time_while_tasks_waited() -> None:
    made = recording(told("a", 0, 0), told("b", 2, 10))
    assert measure.utilisation(made) == pytest.approx(0.5, rel=0.01)  # of 8 s
    assert measure.utilisation(made, (0, 20)) == pytest.approx(0.5)
    assert measure.busy(made, 10) == [1.0, 1.0, 0.0]


def test_only_an_interactive_task_that_came_alone_can_be_overtaken() -> None:
    interactive = [told("a", at_s, 9.0, lane=Lane.INTERACTIVE) for at_s in (1.0, 2.0)]
    made = recording(*interactive, told("b", 0, 0.5), told("b", 0, 5.0), told("b", 0, 8.0))
    assert measure.overtaken(made) == [2]


def test_predictions_are_judged_against_the_wait() -> None:
    etas = measure.etas(recording(told("a", 0, 20, eta_s=18), told("a", 0, 2, eta_s=10)))
    assert etas == measure.Etas(2, 8, 8, 3, 0.5)
