from pathlib import Path

import pytest

from shared.config import DEFAULT_POOLS, Config, Limits, Pool, load
from shared.engine_options import EchoOptions
from shared.errors import ConfigError
from shared.policy import Policy


def read(folder: Path, text: str) -> Config:
    path = folder / "headrace.toml"
    path.write_text(text)
    return load(str(path))


def faults(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value)


def test_empty_file_is_the_default_deployment(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    assert (config.pools, config.limits) == (DEFAULT_POOLS, Limits())


def test_without_a_file_there_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None) == Config(pools=DEFAULT_POOLS)


def test_file_of_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "headrace.toml").write_text("[limits]\nbacklog = 7")
    assert load(None).limits.backlog == 7


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
        [pools.big-1]
        model = "big"
        engine = "vllm"
        shards = 2
        partitions = 16
        slots = 64
        [pools.big-1.vllm]
        source = "/models/big"
        options = { "max-model-len" = 2048, dtype = "bfloat16", eager = true, share = 0.9 }
        [pools.small]
        model = "small"
        engine = "echo"
        [pools.small.echo]
        tokens_per_s = 50
        first_token_ms = 20
        [limits]
        body_bytes = 2048
        log_kept_s = 60
        """,
    )
    big, small = config.pools["big-1"], config.pools["small"]
    assert (big.shards, big.partitions, big.slots, big.vllm.source) == (2, 16, 64, "/models/big")
    assert big.vllm.options == {"max-model-len": 2048, "dtype": "bfloat16", "eager": True, "share": 0.9}
    assert small.echo == EchoOptions(tokens_per_s=50, first_token_ms=20)
    assert (config.limits.body_bytes, config.limits.log_kept_s) == (2048, 60)


def test_every_fault_is_told_at_once_with_its_key(tmp_path: Path) -> None:
    told = faults(
        tmp_path,
        """
        [pool.x]
        [pools.Bad_Name]
        model = "a"
        [pools.x]
        shards = 0
        engine = "onnx"
        slotz = 1
        [pools.x.echo]
        tokens_per_s = "fast"
        [limits]
        backlog = 0
        """,
    )
    assert "headrace.toml has 8 faults:" in told
    for fault in (
        "pool: unknown",
        "pools.Bad_Name: a pool's name is 1 to 32 of a-z, 0-9 and -",
        "pools.x.model is missing",
        "pools.x.shards is 0: Expected `int` >= 1",
        "pools.x.engine is 'onnx': allowed: vllm, echo, openai, python",
        "pools.x.slotz: unknown; did you mean pools.x.slots?",
        "pools.x.echo.tokens_per_s is 'fast'",
        "limits.backlog is 0: Expected `int` >= 1",
    ):
        assert fault in told


def test_two_pools_may_not_serve_one_model(tmp_path: Path) -> None:
    told = faults(tmp_path, '[pools.a]\nmodel = "m"\n[pools.b]\nmodel = "m"')
    assert "pools.b.model is 'm': the pool a serves it already" in told


def test_an_adapter_is_a_name_like_that_of_a_model(tmp_path: Path) -> None:
    told = faults(
        tmp_path, '[pools.a]\nmodel = "m"\nadapters = ["n", "m"]\n[pools.b]\nmodel = "n"\nadapters = ["\\u0007"]'
    )
    assert "pools.a.adapters[1] is 'm': the pool a serves it already" in told
    assert "pools.b.model is 'n': the pool a serves it already" in told
    assert "pools.b.adapters[0] is '\\x07': printable characters only" in told


def test_model_served_twice_is_told_beside_other_faults_of_its_pools(tmp_path: Path) -> None:
    told = faults(tmp_path, '[pools.a]\nmodel = "m"\nshards = 0\n[pools.b]\nmodel = "m"\nslots = -1')
    assert told.splitlines()[0].endswith("has 3 faults:")
    assert "pools.b.model is 'm': the pool a serves it already" in told


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("pools = 3", "pools is 3: expected a table, [pools]"),
        ("[pools]\nx = 3", "pools.x is 3: expected a table, [pools.x]"),
        ('[pools.x]\nmodel = "m"\nvllm = 3', "pools.x.vllm is 3: expected a table, [pools.x.vllm]"),
        ("limits = []", "limits is []: expected a table, [limits]"),
        ("[pools.x]\nmodel = ''", "pools.x.model is ''"),
        ('[pools.x]\nmodel = "a\\nb"', r"pools.x.model is 'a\nb': printable characters only"),
        ("x =", "is not valid TOML"),
    ],
)
def test_wrong_shapes_are_named(tmp_path: Path, text: str, fault: str) -> None:
    assert fault in faults(tmp_path, text)


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing.toml cannot be read: No such file"):
        load(str(tmp_path / "missing.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load(str(tmp_path / "binary.toml"))


def test_path_of_the_file_is_kept(tmp_path: Path) -> None:
    assert read(tmp_path, "").path == str(tmp_path / "headrace.toml")


def test_durability_is_said_at_the_top(tmp_path: Path) -> None:
    config = read(tmp_path, 'durability = "synced"\nreplicas = 2')
    assert (config.durability, config.replicas) == ("synced", 2)
    assert (read(tmp_path, "").durability, read(tmp_path, "").replicas) == ("fast", 0)


def test_replicas_that_nobody_would_wait_for_are_a_fault(tmp_path: Path) -> None:
    for text in ("replicas = 2", 'durability = "fast"\nreplicas = 2'):
        assert "replicas is 2: durability is 'fast', which waits for none" in faults(tmp_path, text)
    assert read(tmp_path, 'durability = "fast"\nreplicas = 0').replicas == 0


def test_durability_that_does_not_exist_is_a_fault(tmp_path: Path) -> None:
    told = faults(tmp_path, 'durability = "sure"\nreplicas = -1\ndurable = true')
    assert "durability is 'sure': allowed: fast, replicated, synced" in told
    assert "replicas is -1" in told
    assert "durable: unknown; did you mean durability?" in told


def test_word_that_is_like_none_gets_the_list_of_those_that_are_known(tmp_path: Path) -> None:
    told = faults(tmp_path, "xyzzy = 1")
    assert "has 1 fault:" in told
    assert (
        "xyzzy: unknown; known: affinity, aliases, cache, durability, keys, keys_required, lanes, limits, pools" in told
    )


def test_policy_of_an_empty_file_is_the_default_one(tmp_path: Path) -> None:
    assert read(tmp_path, "").policy == Policy()


def test_faults_of_the_policy_are_told_beside_the_others(tmp_path: Path) -> None:
    told = faults(tmp_path, "[limits]\nbacklog = 0\n[tenants.ann]\nweight = 0")
    assert "limits.backlog is 0" in told
    assert "tenants.ann.weight is 0" in told


def test_policy_is_held_against_the_pools_and_limits_in_force(tmp_path: Path) -> None:
    """Those of the file need a restart: until then nobody serves a model that only the file has."""
    text = '[pools.b]\nmodel = "n"\n[limits]\nresults_kept_s = 999\n[aliases.fast]\ntargets = [{ model = "n" }]'
    text += "\n[[cache]]\nttl_s = 500"
    path = tmp_path / "headrace.toml"
    path.write_text(text)
    assert load(str(path)).policy.aliases["fast"].targets[0].model == "n"
    within = Config(pools={"a": Pool(model="m")}, limits=Limits(results_kept_s=100))
    with pytest.raises(ConfigError) as caught:
        load(str(path), within)
    assert "aliases.fast.targets[0].model is 'n': no pool serves it; known: m" in str(caught.value)
    assert "cache[0].ttl_s is 500: at most 100 (limits.results_kept_s)" in str(caught.value)
