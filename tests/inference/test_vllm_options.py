import pytest

from services.inference.vllm_options import defaults, environment, to_flags
from shared.engine_options import Flag
from shared.errors import ConfigError

KNOWN = ["dtype", "max-model-len", "enforce-eager", "compilation-config", "model"]


def test_options_become_flags() -> None:
    options: dict[str, Flag] = {
        "dtype": "float32",
        "max_model_len": 2048,
        "enforce-eager": False,
        "compilation-config.mode": 1,
    }
    assert to_flags(options, KNOWN) == [
        "--dtype=float32",
        "--max-model-len=2048",
        "--no-enforce-eager",
        "--compilation-config.mode=1",
    ]
    assert to_flags({"enforce-eager": True}, KNOWN) == ["--enforce-eager"]
    assert to_flags({"dtype": ["a=/a", "b=/b"]}, KNOWN) == ["--dtype", "a=/a", "b=/b"]


def test_every_fault_is_named_at_once_with_what_to_use() -> None:
    with pytest.raises(ConfigError) as refused:
        to_flags({"max-model-length": 1, "model": "x", "dtype": "auto"}, KNOWN)
    assert str(refused.value).splitlines()[1:] == [
        "  max-model-length: vLLM has no such option; did you mean max-model-len?",
        "  model: set by Headrace; use source of the pool",
    ]


def test_the_slots_of_a_pool_are_those_of_its_engine() -> None:
    assert defaults(cpu=False, slots=7)["max-num-seqs"] == 7
    assert "max-num-seqs" not in defaults(cpu=False, slots=0)


def test_a_gpu_is_left_to_compile_and_to_size_its_cache() -> None:
    assert defaults(cpu=False, slots=0).keys() == {"scheduling-policy"}
    assert "TORCHDYNAMO_DISABLE" not in environment(cpu=False)
