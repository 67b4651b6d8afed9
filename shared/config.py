"""headrace.toml: pools, models, engines, limits. An empty file is the default deployment."""

import re
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from shared import policy_file
from shared.engine_options import (
    OPTIONS,
    EchoOptions,
    OpenaiOptions,
    Options,
    PythonOptions,
    VllmOptions,
    engine_names,
    options_of,
)
from shared.errors import ConfigError
from shared.faults import nearest, read_fields, read_table
from shared.policy import Live, Policy

DEFAULT_PATH = "headrace.toml"
DEFAULT_POOL = "smol"
DEFAULT_ENGINE = "vllm"
POOL_NAME = re.compile(r"[a-z0-9-]{1,32}")

EngineName = str
"""Of a built-in engine, or of one that a package brings (engine_options.py)."""
Durability = Literal["fast", "replicated", "synced"]


class PoolSettings(Struct, frozen=True, kw_only=True):
    """What the table of a pool says beside the tables of engines."""

    model: Annotated[str, Meta(min_length=1, max_length=200)]
    """The name that clients use."""
    engine: EngineName = DEFAULT_ENGINE
    shards: Annotated[int, Meta(ge=1, le=1024)] = 1
    partitions: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Streams that a shard's live events are spread over."""
    slots: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """Tasks a worker takes at once; 0: what the engine can."""
    adapters: list[Annotated[str, Meta(min_length=1, max_length=200)]] = []
    """Further names that clients use: each a variant of the model that the same engine serves, such as a LoRA adapter."""

    @property
    def models(self) -> tuple[str, ...]:
        """Every name that its workers serve."""
        return (self.model, *self.adapters)


class Pool(PoolSettings, frozen=True, kw_only=True):
    """Interchangeable workers of one model."""

    vllm: VllmOptions = VllmOptions()
    echo: EchoOptions = EchoOptions()
    openai: OpenaiOptions = OpenaiOptions()
    python: PythonOptions = PythonOptions()
    installed: dict[str, Options] = {}
    """Of engines that packages bring, by name: those that the file has a table of, or that serve the pool."""

    def options(self, engine: EngineName) -> Options:
        """Raises: ConfigError where the engine is not there, or lacks what it needs."""
        options: Options | None = getattr(self, engine) if engine in OPTIONS else self.installed.get(engine)
        options = options_of(engine)() if options is None else options
        if missing := _missing(options):
            raise ConfigError(
                f"the engine {engine} needs {' and '.join(missing)} in the pool's table [pools.<name>.{engine}]"
            )
        return options


class Limits(Struct, frozen=True, kw_only=True):
    body_bytes: Annotated[int, Meta(ge=1024)] = 4 * 1024 * 1024
    result_bytes: Annotated[int, Meta(ge=1024)] = 4 * 1024 * 1024
    inline_bytes: Annotated[int, Meta(ge=1024)] = 256 * 1024
    """Of a body or an answer that goes through Redis; larger ones lie in the object store, if there is one. Smaller spares Redis
    memory, and costs each task that is over it a write and a read of the store."""
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

    file_bytes: Annotated[int, Meta(ge=1024)] = 512 * 1024 * 1024
    """Of one uploaded file."""
    files_kept_s: Annotated[int, Meta(ge=1)] = 30 * 24 * 3600
    """From the creation of a file, unless it says otherwise."""
    batch_lines: Annotated[int, Meta(ge=1, le=10_000_000)] = 1_000_000
    """Of the input of a batch. While it is validated its scheduler keeps about 100 bytes of each."""
    batch_window: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    """Items of a tenant's batches that wait or run at once, for each scheduler. More only fills memory; fewer than the slots
    leaves some empty."""

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
        models = [model for pool in within.pools.values() for model in pool.models]
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
    for name, key, model in _named(tables):
        if model in owners:
            faults.append(f"pools.{name}.{key} is {model!r}: the pool {owners[model]} serves it already")
        owners.setdefault(model, name)
        if not model.isprintable():  # answers name it in a header
            faults.append(f"pools.{name}.{key} is {model!r}: printable characters only")
    if not tables:
        return DEFAULT_POOLS, [pool.model for pool in DEFAULT_POOLS.values()]
    return pools, list(owners)


def _named(tables: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Each model with its pool and the key that names it."""
    for name, table in tables.items():
        given = table if isinstance(table, dict) else {}
        adapters = given.get("adapters")
        named = [("model", given.get("model"))]
        named += [(f"adapters[{i}]", said) for i, said in enumerate(adapters if isinstance(adapters, list) else [])]
        yield from ((name, key, said) for key, said in named if isinstance(said, str))


def _pool(name: str, tables: dict[str, Any], faults: list[str]) -> Pool | None:
    before = len(faults)
    if not POOL_NAME.fullmatch(name):
        faults.append(f"pools.{name}: a pool's name is 1 to 32 of a-z, 0-9 and -")
    table = read_table(tables, name, faults, "pools.")
    if not isinstance(tables[name], dict):
        return None
    given = [key for key in table if _is_engine(key)]
    rest = {key: value for key, value in table.items() if key not in given}
    values = read_fields(PoolSettings, rest, partial("pools.{}.{}".format, name), faults)
    serving = values.get("engine", DEFAULT_ENGINE)
    options: dict[str, Any] = {}
    for engine in dict.fromkeys([*given, serving]):
        made = _options(engine, table, f"pools.{name}", faults)
        if made is not None:
            options[engine] = made
            if engine == serving:
                faults += [f"pools.{name}.{engine}.{field} is missing" for field in _missing(made)]
    if len(faults) > before:
        return None
    installed = {engine: options.pop(engine) for engine in list(options) if engine not in OPTIONS}
    return Pool(**values, **options, installed=installed)


def _is_engine(key: str) -> bool:
    """What is installed is looked through only for a key that is nothing of ours: it takes milliseconds."""
    return key in OPTIONS or (key not in PoolSettings.__struct_fields__ and key in engine_names())


def _options(engine: str, table: dict[str, Any], where: str, faults: list[str]) -> Options | None:
    if engine not in OPTIONS and engine not in engine_names():
        faults.append(f"{where}.engine is {engine!r}: allowed: {', '.join(engine_names())}")
        return None
    try:
        kind = options_of(engine)
    except ConfigError as error:
        faults.append(f"{where}.{engine}: {error}")
        return None
    before = len(faults)
    given = read_table(table, engine, faults, f"{where}.")
    read = read_fields(kind, given, f"{where}.{engine}.{{}}".format, faults)
    if len(faults) > before:
        return None
    made = kind(**read)
    faults += [f"{where}.{engine}.{field} {what}" for field, what in made.wrong()]
    return made


def _missing(options: Options) -> list[str]:
    return [field for field in options.needed if not getattr(options, field)]
