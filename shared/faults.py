"""Reading untyped data into a Struct, collecting every fault instead of stopping at the first."""

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache, partial
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

T = TypeVar("T", bound=Struct)

SHOWN = 20
"""Known names that a fault lists. There may be ten thousand tenants."""


def read_fields(
    kind: type[T], data: Mapping[str, Any], name_of: Callable[[str], str], faults: list[str], *, strict: bool = True
) -> dict[str, Any]:
    """The valid fields of `data`, converted. Faults (unknown, wrong) are appended, one line each, under `name_of(field)`.

    Tables within a field are read in the same way: `targets[1].weight`.
    """
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for field, value in data.items():
        if field not in hints:
            faults.append(f"{name_of(field)}: unknown{nearest(field, hints, name_of)}")
            continue
        before = len(faults)
        for where, inner, table in _tables_in(hints[field], value):
            read_fields(inner, table, partial("{}{}.{}".format, name_of(field), where), faults, strict=strict)
        if len(faults) > before:
            continue
        try:
            values[field] = msgspec.convert(value, hints[field], strict=strict)
        except msgspec.ValidationError as error:
            faults.append(f"{name_of(field)} is {value!r}: {_allowed(hints[field]) or error}")
    for known in _fields(kind):
        if known.required and known.name not in data:
            faults.append(f"{name_of(known.name)} is missing")
    return values


def read_tables(kind: type[T], data: Mapping[str, Any], name: str, faults: list[str]) -> dict[str, T]:
    """The valid tables [name.<key>] of `data`, by their keys. Faults are appended, one line each."""
    made = {}
    tables = read_table(data, name, faults)
    for key in tables:
        before = len(faults)
        table = read_table(tables, key, faults, f"{name}.")
        if len(faults) == before:
            values = read_fields(kind, table, partial("{}.{}.{}".format, name, key), faults)
            if len(faults) == before:
                made[key] = kind(**values)
    return made


def read_table(data: Mapping[str, Any], key: str, faults: list[str], prefix: str = "") -> dict[str, Any]:
    """The table [prefix + key] of `data`; empty if there is none, or something else, which is a fault."""
    table = data.get(key, {})
    if isinstance(table, dict):
        return table
    faults.append(f"{prefix}{key} is {table!r}: expected a table, [{prefix}{key}]")
    return {}


@cache
def _hints(kind: type[Struct]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


@cache
def _fields(kind: type[Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)


def _tables_in(hint: Any, value: Any) -> Iterator[tuple[str, type[Struct], dict[str, Any]]]:
    """(index, kind, table) of each table that `value` is or lists, where `hint` wants them."""
    kind = _struct_of(hint)
    if kind is None:
        return
    if isinstance(value, dict):
        yield "", kind, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, dict):
                yield f"[{index}]", kind, item


@cache
def _struct_of(hint: Any) -> type[Struct] | None:
    """S of `S`, `S | None` and `list[S]`. A dict's are not looked for: its keys are names, not fields."""
    if isinstance(hint, type) and issubclass(hint, Struct):
        return hint
    inner = () if get_origin(hint) in (dict, Literal) else get_args(hint)
    return next((kind for part in inner if (kind := _struct_of(part)) is not None), None)


def _allowed(hint: Any) -> str:
    return "allowed: " + ", ".join(str(word) or "''" for word in get_args(hint)) if get_origin(hint) is Literal else ""


def nearest(word: str, known: Mapping[str, Any] | list[str], name_of: Callable[[str], str] = str) -> str:
    names = list(known)
    near = get_close_matches(word, names, 1)
    if near:
        return f"; did you mean {name_of(near[0])}?"
    if not names:
        return ""
    listed = sorted(map(name_of, names))
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return f"; known: {', '.join(listed[:SHOWN])}{more}"
