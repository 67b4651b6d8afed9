"""The life of a task, as data. Every change of state is one script; this table is what the scripts obey and tests check."""

from enum import StrEnum

from shared.errors import IllegalTransition


class State(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        return not TRANSITIONS[self]


class Lane(StrEnum):
    """Priority classes, most urgent first."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"

    @property
    def priority(self) -> int:
        """0 is most urgent; the number vLLM's own scheduler gets."""
        return list(Lane).index(self)


LANE_WORDS = {**{lane.value: lane for lane in Lane}, "high": Lane.INTERACTIVE, "low": Lane.BATCH}
"""What producers may call a lane: its name, or the words high, normal and low."""

TRANSITIONS: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.PROCESSING, State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED}),
    State.PROCESSING: frozenset({State.PENDING, State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED}),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
}


def check_transition(task_id: str, source: State, target: State) -> None:
    """Raises: IllegalTransition, naming task, from, wanted and allowed."""
    if target not in TRANSITIONS[source]:
        raise IllegalTransition(task_id, source, target, sorted(TRANSITIONS[source]))
