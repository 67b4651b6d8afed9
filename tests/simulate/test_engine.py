"""The model of an engine: all that run advance together, the slower the more they are."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulate.engine import Engine, Speed

SPEED = Speed(step_s=0.01, each_s=0.001, prompt_tokens=100)


def test_a_task_alone_takes_its_steps() -> None:
    engine = Engine(SPEED)
    engine.begin("a", 100, 5.0)
    assert engine.next_end_s() == pytest.approx(5.0 + 100 * 0.011)
    assert engine.done(5.5) == []
    assert engine.done(6.2) == ["a"]
    assert engine.next_end_s() == math.inf


def test_a_second_task_slows_the_first_down() -> None:
    engine = Engine(SPEED)
    engine.begin("a", 100, 0.0)
    engine.begin("b", 100, 0.55)  # `a` has made 50 steps
    assert engine.next_end_s() == pytest.approx(0.55 + 50 * 0.012)


def test_a_task_that_is_stopped_tells_how_far_it_came_and_is_not_done() -> None:
    engine = Engine(SPEED)
    engine.begin("a", 100, 0.0)
    engine.begin("b", 200, 0.0)
    assert engine.stop("a", 0.6) == 50
    assert engine.done(10.0) == ["b"]


def test_a_task_that_was_stopped_can_begin_again() -> None:
    engine = Engine(SPEED)
    engine.begin("a", 10, 0.0)
    engine.stop("a", 0.05)
    engine.begin("a", 100, 0.05)
    assert engine.done(0.2) == []
    assert engine.done(1.3) == ["a"]


def test_a_prompt_takes_a_step_for_each_piece() -> None:
    assert SPEED.steps(250, 40) == 43


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=20))
def test_every_task_ends_and_none_before_it_could_have_alone(tasks: list[tuple[int, float]]) -> None:
    begins: dict[str, tuple[float, int]] = {}
    ends: dict[str, float] = {}
    engine, now_s = Engine(SPEED), 0.0
    for number, (steps, pause_s) in enumerate(tasks):
        engine.begin(str(number), steps, now_s)
        begins[str(number)], now_s = (now_s, steps), now_s + pause_s
        ends |= dict.fromkeys(engine.done(now_s), now_s)
    while engine.running:
        now_s = engine.next_end_s()
        ends |= dict.fromkeys(engine.done(now_s), now_s)
    for id, (began_s, steps) in begins.items():
        assert ends[id] - began_s >= steps * SPEED.seconds(1) - 1e-3
