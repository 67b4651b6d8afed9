"""Entries of the reply streams, `hr:reply:<name>`: written by the notifier for results, by the scheduler for refusals."""

from shared import keys
from shared.bus.connection import Arg
from shared.messages import Reply, encode


def reply_command(name: str, reply: Reply) -> list[Arg]:
    """The XADD of one reply. The outer fields are for readers with redis-cli; `reply` holds all of it."""
    fields = {"event": reply.event, "id": reply.id, "task_id": reply.task_id, "status": reply.status}
    command: list[Arg] = ["XADD", keys.reply(name), "*"]
    for field, value in fields.items():
        if value:
            command += [field, value]
    if reply.text is not None:
        command += ["text", reply.text]
    return [*command, "reply", encode(reply)]
