"""headrace.toml is the built-in configuration, written out, with an example of everything else that can be said."""

import re
import tomllib

import msgspec

from shared import config, policy
from shared.engine_options import OPTIONS, Upstream
from shared.lifecycle import Lane
from tests.deploy.reading import ROOT

WRITTEN = (ROOT / "headrace.toml").read_text()
WHOLE = re.sub(r"^#(?! \S|$)", "", WRITTEN, flags=re.MULTILINE)
"""With every example in force."""


def fields(kind: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind)}


def test_the_example_configuration_says_the_defaults() -> None:
    written = config.load(str(ROOT / "headrace.toml"))
    assert msgspec.structs.replace(written, path=None) == config.Config(pools=config.DEFAULT_POOLS)


def test_the_example_configuration_is_valid_with_all_its_examples() -> None:
    whole = config.parse("headrace.toml", WHOLE.encode())
    assert whole.policy != policy.Policy()


def test_the_example_configuration_names_every_setting() -> None:
    data = tomllib.loads(WHOLE)
    (pool,) = data["pools"].values()
    (alias,) = data["aliases"].values()
    for written, kind in (
        ({*pool, "installed"}, config.Pool),
        *((pool[engine], options) for engine, options in OPTIONS.items()),
        (pool["openai"]["upstreams"][0], Upstream),
        (data["limits"], config.Limits),
        (data["lanes"]["interactive"], policy.LaneRule),
        (data["tenants"]["acme"], policy.Tenant),
        (*data["keys"].values(), policy.Key),
        (*data["producers"].values(), policy.Producer),
        (alias, policy.Alias),
        (alias["targets"][0], policy.Target),
        (alias["shadow"], policy.Shadow),
        (*data["templates"].values(), policy.Template),
        (*data["cache"], policy.CacheRule),
        ({*data["webhooks"], "endpoints"} - {"orders"}, policy.Webhooks),
        (data["webhooks"]["orders"], policy.Endpoint),
    ):
        assert set(written) == fields(kind)
    assert set(data["lanes"]) == set(Lane)
    assert set(data) == {*fields(config.Safety), *fields(policy.Policy), "pools", "limits"}
