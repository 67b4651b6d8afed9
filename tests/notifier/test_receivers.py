"""How much a receiver is given: time is held, so every rest is known."""

from services.notifier.receivers import (
    FAILURES,
    FIRST_PAUSE_S,
    KNOWN,
    LONGEST_PAUSE_S,
    LONGEST_REST_S,
    Receiver,
    Receivers,
    pause_s,
)


class Clock:
    def __init__(self) -> None:
        self.at_s = 100.0

    def __call__(self) -> float:
        return self.at_s


def answer(receiver: Receiver, *, failed: bool | None, wait_s: float = 0.0) -> None:
    receiver.begins()
    receiver.ends(failed=failed, wait_s=wait_s)


def broken(clock: Clock) -> Receiver:
    receiver = Receiver(clock)
    for _ in range(FAILURES):
        assert receiver.rest_s == 0
        answer(receiver, failed=True)
    return receiver


def test_failures_in_a_row_bring_a_rest_and_one_delivery_asks_after_it() -> None:
    clock = Clock()
    receiver = broken(clock)
    assert 0.5 <= receiver.rest_s <= 1.0
    clock.at_s += 1.0
    assert receiver.rest_s == 0
    receiver.begins()
    assert receiver.rest_s > 0
    receiver.ends(failed=False)
    assert receiver.rest_s == 0
    answer(receiver, failed=True)
    assert receiver.rest_s == 0


def test_rests_double_up_to_the_longest() -> None:
    clock = Clock()
    receiver = broken(clock)
    longest = []
    for _ in range(10):
        clock.at_s += 100
        answer(receiver, failed=True)
        longest.append(receiver.rest_s)
    assert longest[0] <= 2
    assert LONGEST_REST_S / 2 <= longest[-1] <= LONGEST_REST_S


def test_success_in_between_and_what_is_not_known_open_nothing() -> None:
    receiver = Receiver(Clock())
    for _ in range(FAILURES):
        answer(receiver, failed=True)
        answer(receiver, failed=False)
        answer(receiver, failed=None)
    assert receiver.rest_s == 0


def test_who_asks_for_time_gets_it_at_once() -> None:
    clock = Clock()
    receiver = Receiver(clock)
    answer(receiver, failed=True, wait_s=30)
    assert receiver.rest_s == 30
    clock.at_s += 30
    assert receiver.rest_s == 0


def test_those_without_room_wait_twice_as_long_each_time_up_to_the_longest() -> None:
    for waited, longest_s in (
        (0, FIRST_PAUSE_S),
        (1, 2 * FIRST_PAUSE_S),
        (10, LONGEST_PAUSE_S),
        (10**6, LONGEST_PAUSE_S),
    ):
        assert all(longest_s / 2 <= pause_s(waited) <= longest_s for _ in range(20))


def test_the_receiver_that_was_not_used_for_longest_is_forgotten_unless_it_holds_something() -> None:
    receivers = Receivers(Clock())
    holding, idle = receivers.of("holding"), receivers.of("idle")
    holding.held = 1
    for number in range(KNOWN - 1):
        receivers.of(f"r{number}")
    assert receivers.of("holding") is holding
    assert receivers.of("idle") is not idle
