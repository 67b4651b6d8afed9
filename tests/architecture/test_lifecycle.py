"""The life of a task is the table of the design, word for word."""

import pytest

from shared.errors import IllegalTransition
from shared.lifecycle import TRANSITIONS, Lane, State, check_transition

DESIGN = """
pending → processing | completed | failed | cancelled | expired
processing → completed | failed | cancelled | expired | pending
"""


def designed() -> dict[str, set[str]]:
    table: dict[str, set[str]] = {}
    for line in DESIGN.strip().splitlines():
        source, _, targets = line.partition(" → ")
        table[source] = set(targets.split(" | "))
    return table


def test_transitions_are_those_of_the_design() -> None:
    assert {state.value: {target.value for target in targets} for state, targets in TRANSITIONS.items()} == {
        **{state.value: set() for state in State},
        **designed(),
    }


def test_terminal_states_are_those_without_a_way_out() -> None:
    assert {state for state in State if state.terminal} == {
        State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED,
    }  # fmt: skip


@pytest.mark.parametrize("source", list(State))
@pytest.mark.parametrize("target", list(State))
def test_illegal_move_names_task_from_wanted_and_allowed(source: State, target: State) -> None:
    if target.value in designed().get(source.value, set()):
        check_transition("t1", source, target)
        return
    with pytest.raises(IllegalTransition) as caught:
        check_transition("t1", source, target)
    allowed = ", ".join(sorted(designed().get(source.value, set()))) or "nothing"
    assert str(caught.value) == f"task t1 cannot go from {source} to {target}; allowed: {allowed}"


def test_lanes_are_numbered_from_the_most_urgent() -> None:
    assert [(lane.value, lane.priority) for lane in Lane] == [("interactive", 0), ("normal", 1), ("batch", 2)]
