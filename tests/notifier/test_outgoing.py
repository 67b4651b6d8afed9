"""What waits for a slow client is merged, and bounded."""

import pytest

from services.notifier.frames import MAX_FRAME_BYTES, Data, Live, Status, encode_frames
from services.notifier.outgoing import MOST_BYTES, Outgoing, TooSlow


def data(first: int, last: int, text: str = "x", *, task: str = "") -> Data:
    return Data(id=1, task=task, c=str(last), f=first, n=last, d=text)


async def test_ranges_that_join_leave_as_one() -> None:
    outgoing = Outgoing()
    for number in range(1, 4):
        outgoing.push(data(number, number, f"w{number}"))
    assert await outgoing.take() == [Data(id=1, c="3", f=1, n=3, d="w1w2w3")]


async def test_ranges_of_other_tasks_or_with_something_between_stay_apart() -> None:
    outgoing = Outgoing()
    for message in (data(1, 1), Live(id=1, c="1"), data(2, 2), data(1, 1, task="other"), data(3, 3)):
        outgoing.push(message)
    assert len(await outgoing.take()) == 5


def place(pos: int, *, task: str = "") -> Status:
    return Status(id=1, task=task, c="0", status="pending", info={"pos": pos, "why": "slots"})


async def test_of_the_places_of_a_task_only_the_last_is_told() -> None:
    outgoing = Outgoing()
    for message in (place(9), place(4, task="other"), place(8), data(1, 1), place(7)):
        outgoing.push(message)
    assert await outgoing.take() == [place(7), place(4, task="other"), data(1, 1)]
    outgoing.push(place(6))
    assert await outgoing.take() == [place(6)]


async def test_a_place_after_another_state_is_told_behind_it() -> None:
    outgoing = Outgoing()
    started = Status(id=1, c="0", status="processing", info={"worker": "w", "attempt": 1})
    for message in (place(1), started, place(3)):
        outgoing.push(message)
    assert await outgoing.take() == [place(1), started, place(3)]


async def test_more_than_a_client_could_want_means_that_it_does_not_read() -> None:
    outgoing = Outgoing()
    outgoing.push(data(1, 1, "x" * (MOST_BYTES + 1)))
    with pytest.raises(TooSlow):
        await outgoing.take()


def test_frames_keep_to_their_limits() -> None:
    frames = encode_frames([data(n, n, "y" * 1000) for n in range(200)])
    assert len(frames) > 2
    assert all(len(frame) <= MAX_FRAME_BYTES + 2 + 128 for frame in frames)
