"""Entries of the reply streams, `hr:reply:<name>`: written by the notifier for results, by the scheduler for refusals."""

from shared import keys
from shared.bus.client import Bus
from shared.bus.connection import Arg
from shared.bus.streams import append
from shared.messages import Reply, encode


async def send_reply(bus: Bus, name: str, reply: Reply) -> None:
    """The outer fields are for readers with redis-cli; `reply` holds all of it. Raises: WrongKeyType, BusError."""
    outer = {"event": reply.event, "id": reply.id, "task_id": reply.task_id, "status": reply.status}
    fields: dict[Arg, Arg] = {field: value for field, value in outer.items() if value}
    if reply.text is not None:
        fields["text"] = reply.text
    await append(bus, keys.reply(name), {**fields, "reply": encode(reply)})
