"""JSON of clients: what is wrong with it, told by field and with what would be right."""

from difflib import get_close_matches
from typing import Any

import msgspec
from msgspec import Struct

from shared.errors import UNDECODABLE, InvalidRequest


def read(decoder: Any, data: bytes, shape: type[Struct] | None, *, prefix: str = "") -> Any:
    """Decode. `shape`: whose fields are known; `prefix`: where the data lies. Raises: InvalidRequest."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise explain(error, shape, prefix) from None
    except UNDECODABLE as error:
        where = f"`{prefix}`" if prefix else "The body"
        raise InvalidRequest(f"{where} is not valid JSON: {error}", param=prefix or None) from None


def explain(error: msgspec.ValidationError, shape: type[Struct] | None, prefix: str = "") -> InvalidRequest:
    """msgspec's message, with the field as `param` and the nearest known name for an unknown one."""
    text, _, path = str(error).partition(" - at `$")
    param = ".".join(part for part in (prefix, path.rstrip("`").lstrip(".")) if part)
    if "unknown field" in text and shape is not None and not param:
        unknown = text.rpartition("unknown field ")[2].strip("`")
        return unknown_name("field", unknown, [field.encode_name for field in msgspec.structs.fields(shape)])
    if "missing required field" in text:
        missing = text.rpartition("field ")[2].strip("`")
        param = ".".join(part for part in (param, missing) if part)
        return InvalidRequest(f"The field `{param}` is missing.", param=param)
    at = f"`{param}`: " if param else ""
    return InvalidRequest(f"{at}{text}", param=param or None)


def unknown_name(kind: str, name: str, known: list[str]) -> InvalidRequest:
    """`kind`: field, header."""
    near = get_close_matches(name, known, 1)
    hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
    return InvalidRequest(f"The {kind} `{name}` is unknown; {hint}", param=name)
