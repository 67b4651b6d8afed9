"""Task ids: made before the first send, unguessable, and carrying what is needed to derive every key of the task.

    smol.0.0.3.06dfm2k8q0v3z7h1c5x9w4t6ny
    pool . shard . generation . partition . 48 bits of time and 80 random bits (base32, Crockford's alphabet)

The time comes first, so ids of equal score sort by arrival.
"""

import hashlib
import re
import secrets

from msgspec import Struct

from shared.clock import now_ms
from shared.errors import InvalidTaskId

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
GENERATION = 0
"""Generation of the partition layout; raised when the number of partitions changes."""

NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,128}")
"""What others may call something that becomes part of a key: tenants, sessions, reply streams, producers and their tasks."""

_SHAPE = re.compile(r"([a-z0-9-]{1,32})\.(\d{1,4})\.(\d{1,4})\.(\d{1,4})\.([0-9a-hjkmnp-tv-z]{26})")
_RESPONSE = "resp_"


class Place(Struct, frozen=True):
    """Where a task lives: read from its id, without a look-up."""

    pool: str
    shard: int
    generation: int
    partition: int

    @property
    def tag(self) -> str:
        """The Redis hash tag of the shard, without braces."""
        return f"{self.pool}.{self.shard}"


def new_task_id(place: Place) -> str:
    return _join(place, (now_ms() & (1 << 48) - 1) << 80 | secrets.randbits(80))


def derived_task_id(place: Place, *origin: bytes) -> str:
    """The id of a task whose sender made none: the same origin (door, entry id, payload) gives the same id."""
    digest = hashlib.blake2b(b"\0".join(origin), digest_size=16).digest()
    return _join(place, int.from_bytes(digest) & (1 << 128) - 1)


def place_of(task_id: str) -> Place:
    """Raises: InvalidTaskId."""
    match = _SHAPE.fullmatch(task_id)
    if match is None:
        raise InvalidTaskId(task_id)
    pool, shard, generation, partition, _ = match.groups()
    return Place(pool, int(shard), int(generation), int(partition))


def response_id(task_id: str) -> str:
    """What the Responses API calls a task."""
    return f"{_RESPONSE}{task_id}"


def task_of_response(id: str) -> str:
    """Empty: the id of no response of ours."""
    task_id = id.removeprefix(_RESPONSE)
    return task_id if id.startswith(_RESPONSE) and _SHAPE.fullmatch(task_id) else ""


def bucket(text: str, count: int) -> int:
    """A stable number in [0, count) for a name: which shard, which partition."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % count


def new_nonce() -> str:
    """The owner half of a fence, and the boot part of consumer names: never seen before, never used again."""
    return secrets.token_hex(8)


def _join(place: Place, number: int) -> str:
    digits = "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
    return f"{place.pool}.{place.shard}.{place.generation}.{place.partition}.{digits}"
