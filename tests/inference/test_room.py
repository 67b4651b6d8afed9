"""The room that a worker announces: what limiter, breaker and policy leave of the engine's slots."""

import pytest

from services.inference.breaker import FAILED_TASKS, FIRST_PAUSE_S, State
from services.inference.capacity import REFUSED_TASKS
from services.inference.engine import Capacity
from services.inference.engine_echo import EchoEngine
from services.inference.room import Room
from services.inference.scripts import NO_SLOTS, Slots
from shared.config import Config, Pool
from shared.lifecycle import Lane
from shared.policy import LANES, LaneRule, Live, Policy

MODEL = "echo-1"
INTERACTIVE, NORMAL, BATCH = Lane


class Told(EchoEngine):
    """An engine that says what it is told to."""

    def __init__(self, *, faults: bool = False) -> None:
        super().__init__(model=MODEL, tokens_per_s=0, first_token_ms=0, max_model_len=99, slots=16, faults=faults)
        self.told = Capacity(slots=16)

    def capacity(self) -> Capacity:
        return self.told


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def config() -> Config:
    return Config(pools={"smol": Pool(model=MODEL)}, live=Live(Policy()))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def remote(config: Config, clock: Clock) -> Room:
    return Room(Told(faults=True), config, clock=clock, jitter=lambda: 1.0)


def break_it(room: Room) -> None:
    for task in range(FAILED_TASKS):
        room.began(f"bad{task}", INTERACTIVE)
        assert room.answered(f"bad{task}", 500)
        room.left(f"bad{task}")


def test_at_first_it_is_the_engines_slots_as_the_policy_shares_them(config: Config) -> None:
    assert Room(Told(), config).slots == Slots(16, 16, 8)


def test_another_policy_is_in_force_at_the_next_look(config: Config) -> None:
    room = Room(Told(), config)
    config.live.policy = Policy(lanes={**LANES, NORMAL: LaneRule(share=0.2, slots=0.5)})
    room.look()
    assert room.slots == Slots(16, 8, 8)


def test_what_the_engine_says_cuts_it_and_the_heartbeat_is_told(config: Config) -> None:
    engine, changes = Told(), list[Slots]()
    room = Room(engine, config)
    room.on_change = lambda: changes.append(room.slots)
    for task in range(8):
        room.began(f"t{task}", BATCH)
    engine.told = Capacity(slots=16, running=4, waiting=4, preemptions=1, steps=1)
    room.look()
    assert changes == [Slots(16, 16, 4)]


@pytest.mark.parametrize("status", [429, 503])
def test_refusals_cut_it_also_in_process(config: Config, status: int) -> None:
    room = Room(Told(), config)
    for task in range(8):
        room.began(f"t{task}", INTERACTIVE)
    for task in range(REFUSED_TASKS):
        assert room.slots.total == 16
        assert room.answered(f"t{task}", status)
    assert room.slots.total == 4
    assert room.breaker is None


def test_one_refusal_cuts_nothing(remote: Room) -> None:
    for task in range(2):
        remote.began(f"t{task}", NORMAL)
    assert remote.answered("t0", 429)
    assert remote.slots == Slots(16, 16, 8)


def test_an_engine_in_this_process_has_no_breaker(config: Config) -> None:
    room = Room(Told(), config)
    break_it(room)
    assert not room.closed


def test_open_it_has_no_room_and_says_so_at_once(remote: Room) -> None:
    changes = list[Slots]()
    remote.on_change = lambda: changes.append(remote.slots)
    break_it(remote)
    assert (remote.closed, remote.breaker) == (True, State.OPEN)
    assert changes[-1] == NO_SLOTS


def test_an_engine_that_could_not_be_asked_says_so_at_once_and_charges_nobody(config: Config) -> None:
    engine = Told(faults=True)
    room, changes = Room(engine, config), list[Slots]()
    room.on_change = lambda: changes.append(room.slots)
    for left in (4, 0):
        room.began(f"t{left}", NORMAL)
        engine.told = Capacity(slots=left)
        assert not room.answered(f"t{left}", 502, unreached=True)
        assert len(changes) == (1 if left else 2), "one of several upstreams, too"
    assert (changes[-1], room.breaker) == (NO_SLOTS, State.OPEN)


def test_a_failure_that_was_begun_before_it_opened_is_not_charged(remote: Room) -> None:
    remote.began("old", BATCH)
    break_it(remote)
    assert not remote.answered("old", 503)


def test_half_open_it_has_room_for_one_beside_what_is_left_from_before(remote: Room, clock: Clock) -> None:
    for task, lane in enumerate((INTERACTIVE, NORMAL, NORMAL, BATCH)):
        remote.began(f"hangs{task}", lane)
    break_it(remote)
    clock.now_s += FIRST_PAUSE_S
    assert remote.slots == Slots(5, 4, 2)
    remote.began("probe", BATCH)
    assert remote.slots == Slots(5, 4, 2)
    remote.left("hangs0")
    assert remote.slots == Slots(4, 4, 2)
    assert remote.answered("probe", 200)
    assert (remote.breaker, remote.slots) == (State.CLOSED, Slots(16, 16, 8))


def test_a_failed_probe_is_charged(remote: Room, clock: Clock) -> None:
    break_it(remote)
    clock.now_s += FIRST_PAUSE_S
    remote.began("probe", BATCH)
    assert remote.answered("probe", 500)
    assert remote.breaker is State.OPEN


def test_what_is_wrong_with_the_request_says_nothing_of_the_engine(remote: Room) -> None:
    for task in range(100):
        remote.began(f"t{task}", NORMAL)
        assert remote.answered(f"t{task}", 404)
        remote.left(f"t{task}")
    assert not remote.closed


def test_an_engine_that_offers_no_slots_is_given_nothing(config: Config) -> None:
    engine, changes = Told(faults=True), list[Slots]()
    room = Room(engine, config)
    room.on_change = lambda: changes.append(room.slots)
    room.began("t1", NORMAL)
    engine.told = Capacity(slots=0)
    assert room.answered("t1", 429)
    assert (room.closed, room.slots, changes) == (True, NO_SLOTS, [NO_SLOTS])
    engine.told = Capacity(slots=16)
    assert (room.closed, room.slots) == (False, Slots(16, 16, 8))
