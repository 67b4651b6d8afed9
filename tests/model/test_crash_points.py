"""At every command of every flow: its sender dies, its answer is lost, it comes twice, or others come first. Whatever
happens, fresh processes bring all tasks to one end, with one unbroken text, and nothing is left behind.
"""

import contextlib
from collections.abc import Awaitable

import msgspec
import pytest

from shared.bus.client import Bus
from shared.errors import BusError
from shared.lifecycle import State
from shared.messages import Chunks, Event, Reset
from tests.model.flows import FLOWS, LIMITS, RIVALS, TEXT, Flow, Stage
from tests.model.recorder import Mishap, Recorder, live_through
from tests.support import audit, redis
from tests.support.tasks import SHARD

MOST = 100
"""Commands of a flow; more of them would never end."""


async def play(url: str, flow: Flow, mishap: Mishap, at: int, rival: str = "") -> int:
    """One mishap at one command; the number of commands that the flow took."""
    redis.flush(url)
    before = audit.read(url, SHARD)
    step, ends = RIVALS.get(rival, (None, frozenset()))
    async with Bus(url, name="others") as bus:
        stage = Stage(url, bus)
        await flow.prepare(stage)

        def come_first() -> Awaitable[None]:
            assert step is not None
            return step(stage)

        recorder = Recorder(mishap, at, come_first)
        survived = await live_through(url, recorder, lambda recorded: _act(flow, stage, recorded))
        if flow.by == "client" and not survived:
            await flow.act(stage, bus)
        kept = await stage.kept_slots() if survived and flow.by == "worker" else []
        await stage.settle()
        reserved = await stage.reserved()
    faults = faults_of(url, before, stage, flow.ends | ends)
    faults += [f"the tokens of {id} are still reserved" for id in reserved]
    faults += [f"the entry {entry.decode()} keeps a slot of a living worker" for entry in kept]
    assert not faults, "\n".join([f"{mishap} {rival} at command {at} of {recorder.commands}:", *faults])
    return recorder.commands


async def _act(flow: Flow, stage: Stage, bus: Bus) -> None:
    with contextlib.suppress(BusError):  # its loop comes again
        await flow.act(stage, bus)


def faults_of(url: str, before: audit.Content, stage: Stage, ends: frozenset[State]) -> list[str]:
    content = audit.read(url, SHARD)
    faults = audit.faults_of_tasks(content, stage.ids, LIMITS) + audit.faults_of_drained(content)
    faults += audit.faults_of_memory(before, content) + audit.faults_of_replies(url, "orders", content)
    for id, task in content.tasks.items():
        if State(task["state"]) not in ends:
            faults.append(f"{id} is {task['state']}")
        said = text_of(content.logs[id])
        if task["state"] == State.COMPLETED and not said.endswith(TEXT):
            faults.append(f"{id} said {said!r}")
    return faults


def text_of(log: list[Event]) -> str:
    frames: list[bytes] = []
    for event in log:
        if isinstance(event, Reset):
            frames.clear()
        elif isinstance(event, Chunks):
            frames += map(bytes, event.chunks)
    choices = [choice for frame in frames for choice in msgspec.json.decode(frame)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("name", FLOWS)
async def test_flow_without_mishap_keeps_the_promises(redis_url: str, no_task_left: None, name: str) -> None:
    assert await play(redis_url, FLOWS[name], Mishap.NONE, 0) > 0


@pytest.mark.parametrize("mishap", [Mishap.KILLED, Mishap.LOST, Mishap.TWICE])
@pytest.mark.parametrize("name", FLOWS)
async def test_promises_hold_whatever_befalls_a_command(
    redis_url: str, no_task_left: None, name: str, mishap: Mishap
) -> None:
    for at in range(1, MOST):
        if await play(redis_url, FLOWS[name], mishap, at) < at:
            return
    pytest.fail(f"the flow takes more than {MOST} commands")


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("name", FLOWS)
async def test_promises_hold_when_others_come_first(redis_url: str, no_task_left: None, name: str, rival: str) -> None:
    for at in range(1, MOST):
        if await play(redis_url, FLOWS[name], Mishap.LATE, at, rival) < at:
            return
    pytest.fail(f"the flow takes more than {MOST} commands")
