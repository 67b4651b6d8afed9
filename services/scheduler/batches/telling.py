"""The end of a batch, to its webhook.

The batch and the stream of webhooks lie in different slots, so no script ends the one and writes to the other. Instead the hash
holds `webhook`, and does not expire, until its end was announced, and the index holds the batch until it was swept: whoever sweeps
it announces. One that is killed in between is followed by another, which announces it again, under the same `webhook-id`. That
follows from when the batch was made, too: its own id comes again with its Idempotency-Key, once it has expired.
"""

from msgspec import Raw

from shared import keys
from shared.batch_view import view
from shared.batches import Batch
from shared.bus.client import Bus
from shared.messages import Delivery, encode
from shared.webhooks import announce, message_id


async def tell_end(bus: Bus, batch: Batch, kept_ms: int) -> None:
    """Of a batch that has ended; nothing, if nobody is to be told of it any more. `kept_ms`: how long it can be asked for then.

    Raises: WrongKeyType, BusError.
    """
    if not batch.webhook:
        return
    delivery = Delivery(
        id=message_id(batch.id, str(batch.created_at_ms), "end"),
        event=f"batch.{batch.status}",
        to=batch.webhook,
        tenant=batch.tenant,
        at_ms=batch.at_ms[batch.status],
        data=Raw(encode(view(batch))),
    )
    await announce(bus, delivery)
    state = keys.batch(batch.id, "state")
    await bus.commands.call("PEXPIRE", state, kept_ms)
    await bus.commands.call("HDEL", state, "webhook")
