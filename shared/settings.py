"""Settings of a service: the environment, read once, into one frozen Struct. Nothing else in a service reads it."""

import os
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Meta, Struct

from shared.errors import ConfigError
from shared.faults import nearest, read_fields

DRAIN_S = 20.0
"""Less than half of the 60 s that our deployments grant: stopping may take two stages of it."""

Port = Annotated[int, Meta(ge=0, le=65535)]


class CommonSettings(Struct, frozen=True, kw_only=True):
    """What every service reads. A subclass adds its own fields, HEADRACE_<SERVICE>_<FIELD>."""

    redis_url: Annotated[str, Meta(pattern=r"^(redis|rediss|unix)://")] = "redis://127.0.0.1:6379"
    """REDIS_URL."""
    config: str | None = None
    """HEADRACE_CONFIG: path of headrace.toml."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    ready_fd: int | None = None
    """HEADRACE_READY_FD: where one line of JSON goes once the service is ready."""
    die_with_parent: bool = False
    """HEADRACE_DIE_WITH_PARENT: stop when the parent process ends."""
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = DRAIN_S
    """HEADRACE_DRAIN_S: what a stopping service may take to finish what it has begun; the rest is handed back."""
    objects_url: str = ""
    """HEADRACE_OBJECTS: the object store, file:///folder or s3://bucket/prefix; empty: there is none, and no files."""
    host: str = "127.0.0.1"
    port: Port = 0
    """0: a free one."""

    def describe(self) -> str:
        """For the log: every setting, secrets masked."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        values |= {"redis_url": mask(self.redis_url), "objects_url": mask(self.objects_url) or None}
        return " ".join(f"{name}={value}" for name, value in values.items() if value is not None)


SHARED = {
    "REDIS_URL": "redis_url",
    "HEADRACE_CONFIG": "config",
    "HEADRACE_LOG_LEVEL": "log_level",
    "HEADRACE_READY_FD": "ready_fd",
    "HEADRACE_DIE_WITH_PARENT": "die_with_parent",
    "HEADRACE_DRAIN_S": "drain_s",
    "HEADRACE_OBJECTS": "objects_url",
}

Settings = TypeVar("Settings", bound=CommonSettings)


def from_environment(kind: type[Settings], service: str) -> Settings:
    """Raises: ConfigError."""
    return load(kind, service, os.environ)


def load(kind: type[Settings], service: str, environ: Mapping[str, str]) -> Settings:
    """Raises: ConfigError, listing every fault with variable, value and what is allowed."""
    prefix = f"HEADRACE_{service.upper()}_"
    own = [f.name for f in msgspec.structs.fields(kind) if f.name not in SHARED.values()]
    variables = SHARED | {prefix + name.upper(): name for name in own}
    names = {field: variable for variable, field in variables.items()}
    faults = [
        f"{name}: unknown{nearest(name, [v for v in variables if v.startswith(prefix)])}"
        for name in environ
        if name.startswith(prefix) and name not in variables
    ]
    data = {field: environ[variable] for variable, field in variables.items() if environ.get(variable)}
    values = read_fields(kind, data, names.__getitem__, faults, strict=False)
    if faults:
        raise ConfigError("\n".join([f"{len(faults)} wrong settings:", *(f"  {fault}" for fault in faults)]))
    return kind(**values)


def mask(url: str) -> str:
    """A URL without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.hostname or ""
    where = f"{parts.username or ''}:***@{host}" + (f":{parts.port}" if parts.port else "")
    return urlunsplit(parts._replace(netloc=where))
