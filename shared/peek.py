"""The few fields of a body that Headrace itself reads or writes, in JSON and in forms."""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Raw, Struct

from shared import forms
from shared.config import Config
from shared.errors import InvalidRequest
from shared.reading import read
from shared.routes import ROUTES, SPEECH
from shared.routing import names

Rename = Callable[[str], bytes]
"""The body with another model."""


class Peek(Struct):
    """The fields of a body that decide where it goes; everything else is the engine's."""

    model: str | None = None
    stream: bool | None = False
    user: Any = None
    stream_format: Any = None

    @property
    def sticky(self) -> str:
        return self.user if isinstance(self.user, str) else ""


_YES = ("true", "1", "yes", "on", "t", "y")
"""What a form means by true: as FastAPI reads it, on which most engines are built."""

_peek = msgspec.json.Decoder(Peek)
_object = msgspec.json.Decoder(dict[str, Raw])


def peek_into(route: str, body: bytes, content_type: str, *, prefix: str = "") -> Peek:
    """Raises: InvalidRequest."""
    if not content_type:
        peek: Peek = read(_peek, body, Peek, prefix=prefix)
        if route == SPEECH and peek.stream_format == "sse":  # how a speech says `stream`
            peek.stream = True
        if ROUTES[route].whole:
            peek.stream = False
        return peek
    if not ROUTES[route].form:
        raise InvalidRequest(f"The body is {forms.FORM}; {route} takes JSON.", param=prefix or None)
    found = forms.parts(body, content_type)
    stream = forms.field(body, found, "stream") or ""
    return Peek(forms.field(body, found, "model"), stream.lower() in _YES)


def model_of(config: Config, peek: Peek, *, prefix: str = "") -> str:
    """Many engines serve one model and ask for no name. Raises: InvalidRequest, should there be a choice."""
    if peek.model is not None:
        return peek.model
    if len(config.pools) == 1:
        return next(iter(config.pools.values())).model
    known = ", ".join(names(config.policy, config.pools))
    param = f"{prefix}.model" if prefix else "model"
    raise InvalidRequest(f"The field `{param}` is missing. Served here: {known}.", param=param)


def renaming(content_type: str, body: bytes) -> Rename:
    if content_type:
        found = forms.parts(body, content_type)
        return lambda model: forms.with_field(body, found, "model", model)
    fields = read(_object, body, None)
    return lambda model: msgspec.json.encode({**fields, "model": Raw(msgspec.json.encode(model))})
