"""Forgetting a task before its time: who asked for it wants nothing of it kept."""

from shared.bus.client import Bus
from shared.bus.script import Script
from shared.errors import WrongKeyType
from shared.keys import keys_of

DISCARD = Script("shared", "discard")


async def discard(bus: Bus, task_id: str) -> str:
    """The twin of discard.lua: `discarded`, `unknown`, or the state of a task that has not ended.

    Raises: InvalidTaskId, WrongKeyType, BusUnavailable.
    """
    keys, _ = keys_of(task_id)
    verdict = str(await bus.run(DISCARD, [keys.task(task_id), keys.log(task_id)], [], durable=True), "utf-8")
    if verdict.startswith("wrongtype"):
        raise WrongKeyType(f"the key {verdict.partition(' ')[2]} holds a type that is not Headrace's; remove it")
    return verdict
