"""The example of docs/scheduling.md, told by the scripts."""

import re
from pathlib import Path

import pytest

from services.inference.scripts import start
from services.scheduler.scripts import dispatch
from shared.bus.client import Bus
from tests.support import tasks
from tests.support.tasks import SHARD

pytestmark = pytest.mark.keeps_keys  # the weights of tenants stay

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "scheduling.md"


async def number(bus: Bus, *command: str) -> float:
    return float(await bus.commands.call(*command) or 0)


async def clocks(bus: Bus) -> tuple[float, float, float]:
    """Of gold, of silver, and V."""
    turns = SHARD.turns[1]
    gold, silver = await number(bus, "ZSCORE", turns, "gold"), await number(bus, "ZSCORE", turns, "silver")
    return gold, silver, await number(bus, "HGET", SHARD.fair, "v:normal")


async def test_the_example_of_turns_charges_and_settlement_is_what_the_scripts_do(bus: Bus) -> None:
    await bus.commands.call("HSET", SHARD.tenants, "gold", "2.0 0", "silver", "1.0 0")
    await bus.commands.call("HSET", SHARD.means, "gold", "100")
    for _ in range(9):
        await tasks.admitted(bus, tenant="gold", tokens_in=100)
        await tasks.admitted(bus, tenant="silver", tokens_in=100, tokens_out=50)
    owner = await tasks.worker(bus, slots=5)
    rows = re.findall(
        r"^\| (\d) \| (\d+), (\d+) \| (\w+) \| (\d+), (\d+) \| (\d+) \|$", DOCUMENT.read_text(), re.MULTILINE
    )
    assert len(rows) == 5
    before, hands = await clocks(bus), []
    for _, gold, silver, who, gold_after, silver_after, v_after in rows:
        assert before[:2] == (float(gold), float(silver))
        assert (await dispatch(bus, SHARD, tasks.CONFIG, 1)).handed_out == 1
        (hand,) = await tasks.hands(bus, owner)
        assert (await tasks.fields(bus, hand.id))["tenant"] == who
        before = await clocks(bus)
        assert before == (float(gold_after), float(silver_after), float(v_after))
        hands.append(hand)

    await start(bus, owner, hands[:1])
    assert await tasks.finish_one(bus, owner, tasks.ending(hands[0], 1, 0, tokens=120)) == "ok"
    assert (await clocks(bus))[0] == 260
    assert await number(bus, "HGET", SHARD.means, "gold") == 92
    newcomer = await tasks.admitted(bus, tenant="bronze")
    assert await number(bus, "ZSCORE", SHARD.turns[1], "bronze") == 200
    assert (await dispatch(bus, SHARD, tasks.CONFIG, 1)).handed_out == 1
    (hand,) = await tasks.hands(bus, owner)
    assert hand.id == newcomer
