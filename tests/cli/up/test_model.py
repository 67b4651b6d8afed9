import pytest

from services.cli.failure import Failure
from services.cli.up.model import available_gb, check_memory


def test_too_little_memory_names_the_remedies() -> None:
    with pytest.raises(Failure, match=r"2\.5 GB of memory are free, 1 vLLM worker needs about 4 GB") as refused:
        check_memory(2.5, workers=1)
    assert "--engine echo" in str(refused.value)


def test_memory_is_counted_for_every_worker() -> None:
    check_memory(8.5, workers=2)
    with pytest.raises(Failure, match="3 vLLM workers need about 12 GB"):
        check_memory(8.5, workers=3)


def test_memory_that_cannot_be_told_is_not_refused() -> None:
    check_memory(None, workers=1)


def test_this_machine_has_some_memory() -> None:
    available = available_gb()
    assert available is None or available > 0
