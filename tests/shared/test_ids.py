import re

import pytest

from shared.errors import InvalidTaskId
from shared.ids import ALPHABET, Place, bucket, derived_task_id, new_nonce, new_task_id, place_of

PLACE = Place("smol", 3, 0, 15)


def test_id_tells_the_place_of_its_task() -> None:
    assert place_of(new_task_id(PLACE)) == PLACE
    assert place_of(derived_task_id(PLACE, b"x")) == PLACE


def test_id_has_the_documented_shape() -> None:
    assert re.fullmatch(rf"smol\.3\.0\.15\.[{ALPHABET}]{{26}}", new_task_id(PLACE))


def test_ids_are_never_the_same() -> None:
    assert len({new_task_id(PLACE) for _ in range(1000)}) == 1000
    assert len({new_nonce() for _ in range(1000)}) == 1000


def test_ids_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for now_ms in (1, 31, 32, 1_700_000_000_000, 1_700_000_000_001):
        monkeypatch.setattr("shared.ids.now_ms", lambda at=now_ms: at)
        made.append(new_task_id(PLACE))
    assert made == sorted(made)


def test_same_origin_gives_the_same_id_and_another_one_another() -> None:
    assert derived_task_id(PLACE, b"door", b"1-0") == derived_task_id(PLACE, b"door", b"1-0")
    assert derived_task_id(PLACE, b"door", b"1-0") != derived_task_id(PLACE, b"door", b"1-1")
    assert derived_task_id(PLACE, b"ab", b"c") != derived_task_id(PLACE, b"a", b"bc")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "smol",
        "smol.0.0.0",
        "smol.0.0.0." + "0" * 25,
        "smol.0.0.0." + "0" * 27,
        "smol.0.0.0." + "i" * 26,
        "smol.0.0.0." + "A" * 26,
        "smol.0.0.0." + "0" * 26 + "\n",
        "Smol.0.0.0." + "0" * 26,
        "smol.00000.0.0." + "0" * 26,
        "smol.-1.0.0." + "0" * 26,
        "s{x}.0.0.0." + "0" * 26,
        "x" * 33 + ".0.0.0." + "0" * 26,
        "../../etc/passwd",
        "x" * 100_000,
    ],
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidTaskId) as caught:
        place_of(text)
    assert caught.value.status == 404
    assert caught.value.param == "id"
    assert len(str(caught.value)) < 200


def test_tag_of_a_place_is_pool_and_shard() -> None:
    assert PLACE.tag == "smol.3"


def test_buckets_are_stable_in_range_and_spread() -> None:
    counts = [0] * 8
    for n in range(8000):
        counts[bucket(f"name{n}", 8)] += 1
    assert min(counts) > 800
    assert bucket("alice", 16) == bucket("alice", 16)
    assert bucket("anything", 1) == 0
