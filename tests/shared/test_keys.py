import re

import pytest

from shared import keys
from shared.errors import InvalidTaskId
from shared.ids import Place, new_task_id
from shared.keys import ShardKeys, keys_of, shard_keys
from shared.lifecycle import Lane
from shared.wishes import NAME

SHARD = shard_keys("smol", 1)


def all_keys(shard: ShardKeys) -> list[str]:
    return [
        *(
            shard.arrivals,
            *shard.turns,
            *shard.rested,
            shard.waiting,
            shard.fair,
            shard.tenants,
            shard.means,
            shard.held,
            shard.leases,
            shard.workers,
            shard.readers,
            shard.outbox,
            shard.dead,
        ),
        *(shard.task("t"), shard.log("t"), shard.bus(0), shard.work("w"), shard.session("s"), shard.tenant("x")),
    ]


def hash_tag(key: str) -> str:
    found = re.search(r"\{([^}]+)\}", key)
    assert found is not None
    return found[1]


def test_keys_of_a_shard_differ_and_share_its_hash_tag() -> None:
    made = all_keys(SHARD)
    assert len(set(made)) == len(made)
    assert {hash_tag(key) for key in made} == {"smol.1"}
    assert all(key.startswith("hr:{smol.1}:") for key in made)


def test_keys_are_as_documented() -> None:
    assert SHARD.arrivals == "hr:{smol.1}:in"
    assert SHARD.task("t") == "hr:{smol.1}:task:t"
    assert SHARD.turns == tuple(f"hr:{{smol.1}}:turns:{lane}" for lane in ("interactive", "normal", "batch"))
    assert SHARD.backlog(Lane.BATCH, "acme") == "hr:{smol.1}:backlog:batch:acme"
    assert (keys.REQUESTS, keys.SHARDS, keys.reply("orders")) == ("hr:requests", "hr:shards", "hr:reply:orders")


def test_turns_for_each_lane_most_urgent_first() -> None:
    assert [key.rpartition(":")[2] for key in SHARD.turns] == list(Lane)


def test_names_with_braces_in_them_do_not_move_a_key_to_another_slot() -> None:
    assert hash_tag(SHARD.session("{evil}")) == "smol.1"
    assert hash_tag(SHARD.tenant("{evil}")) == "smol.1"


def test_shard_is_built_once() -> None:
    assert shard_keys("smol", 1) is SHARD
    assert shard_keys("smol", 2) is not SHARD


def test_keys_are_found_from_the_id_alone() -> None:
    place = Place("smol", 1, 0, 4)
    assert keys_of(new_task_id(place)) == (SHARD, place)
    with pytest.raises(InvalidTaskId):
        keys_of("x")


def test_reservations_are_spread_and_each_stays_in_its_slot() -> None:
    made = [keys.idempotency("default", f"order-{n}") for n in range(2000)]
    assert keys.idempotency("default", "order-1") == made[1]
    assert len(set(made)) == 2000
    assert len({hash_tag(key) for key in made}) > keys.IDEMPOTENCY_SLOTS * 0.9
    assert hash_tag(keys.idempotency("{a}", "{b}")).startswith("i.")


def test_no_tenant_has_a_key_of_another_one() -> None:
    assert keys.idempotency("a", "b:c") != keys.idempotency("a:b", "c")
    assert not NAME.fullmatch("a/b")


def test_group_of_a_reader_names_its_replica() -> None:
    assert keys.reader_group("n1") != keys.reader_group("n2")
