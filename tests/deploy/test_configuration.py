"""headrace.toml is the built-in configuration, written out."""

import tomllib

import msgspec

from shared import config
from tests.deploy.reading import ROOT


def test_the_example_configuration_says_the_defaults() -> None:
    written = config.load(str(ROOT / "headrace.toml"))
    assert msgspec.structs.replace(written, path=None) == config.Config(pools=config.DEFAULT_POOLS)


def test_the_example_configuration_names_every_setting() -> None:
    data = tomllib.loads((ROOT / "headrace.toml").read_text())
    (pool,) = data["pools"].values()
    for written, kind in (
        (pool, config.Pool),
        (pool["vllm"], config.VllmOptions),
        (pool["echo"], config.EchoOptions),
        (data["limits"], config.Limits),
    ):
        assert set(written) == {field.name for field in msgspec.structs.fields(kind)}
