"""Reading untyped data into a Struct, collecting every fault instead of stopping at the first."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

T = TypeVar("T", bound=Struct)


def read_fields(
    kind: type[T], data: Mapping[str, Any], name_of: Callable[[str], str], faults: list[str], *, strict: bool = True
) -> dict[str, Any]:
    """The valid fields of `data`, converted. Faults (unknown, wrong) are appended, one line each, under `name_of(field)`."""
    hints = get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for field, value in data.items():
        if field not in hints:
            faults.append(f"{name_of(field)}: unknown{nearest(field, hints, name_of)}")
            continue
        try:
            values[field] = msgspec.convert(value, hints[field], strict=strict)
        except msgspec.ValidationError as error:
            faults.append(f"{name_of(field)} is {value!r}: {_allowed(hints[field]) or error}")
    for known in msgspec.structs.fields(kind):
        if known.required and known.name not in data:
            faults.append(f"{name_of(known.name)} is missing")
    return values


def _allowed(hint: Any) -> str:
    return "allowed: " + ", ".join(map(str, get_args(hint))) if get_origin(hint) is Literal else ""


def nearest(word: str, known: Mapping[str, Any] | list[str], name_of: Callable[[str], str] = str) -> str:
    names = list(known)
    near = get_close_matches(word, names, 1)
    return f"; did you mean {name_of(near[0])}?" if near else f"; known: {', '.join(sorted(map(name_of, names)))}"
