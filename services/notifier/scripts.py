"""Typed twins of the notifier's scripts."""

from msgspec import Struct

from shared import keys
from shared.bus.client import Bus
from shared.bus.script import MAX_ITEMS, Script
from shared.bus.streams import LOOP_PATIENCE_S
from shared.errors import WrongKeyType
from shared.messages import Delivery, encode

PUT_OFF = Script("services.notifier", "put_off")
PROMOTE = Script("services.notifier", "promote")

PLACES = (keys.WEBHOOKS, keys.WEBHOOKS_LATER)


class Promoted(Struct, frozen=True):
    tried: int
    waiting: int


async def put_off(bus: Bus, entry: bytes, delivery: Delivery, *, delay_ms: int) -> None:
    """The delivery waits, and its entry is done. Raises: WrongKeyType, BusError."""
    _check(await bus.run(PUT_OFF, PLACES, [keys.SENDERS, entry, delay_ms, encode(delivery)]))


async def promote(bus: Bus, *, most: int = MAX_ITEMS) -> Promoted:
    """Raises: WrongKeyType, BusError."""
    verdict, *counts = await bus.run(PROMOTE, PLACES, [most], patience_s=LOOP_PATIENCE_S)
    _check(verdict)
    return Promoted(*counts)


def _check(verdict: bytes) -> None:
    if verdict != b"ok":
        raise WrongKeyType(f"the key {verdict.decode()[10:]} holds a type that is not Headrace's; remove it")
