from typing import Annotated, Literal

from msgspec import Meta, Struct

from shared.faults import nearest, read_fields


class Thing(Struct):
    size: Annotated[int, Meta(ge=1)]
    colour: Literal["red", "blue"] = "red"


def read(data: dict[str, object], *, strict: bool = True) -> tuple[dict[str, object], list[str]]:
    faults: list[str] = []
    return read_fields(Thing, data, lambda field: f"thing.{field}", faults, strict=strict), faults


def test_valid_fields_come_back_converted() -> None:
    assert read({"size": 1, "colour": "blue"}) == ({"size": 1, "colour": "blue"}, [])
    assert read({"size": "1"}, strict=False) == ({"size": 1}, [])


def test_every_fault_is_collected_and_the_valid_fields_remain() -> None:
    values, faults = read({"size": 0, "colour": "green", "colours": 1})
    assert values == {}
    assert faults == [
        "thing.size is 0: Expected `int` >= 1",
        "thing.colour is 'green': allowed: red, blue",
        "thing.colours: unknown; did you mean thing.colour?",
    ]


def test_missing_field_is_a_fault_and_a_default_is_not() -> None:
    assert read({}) == ({}, ["thing.size is missing"])


def test_far_word_gets_the_list_of_known_ones() -> None:
    assert nearest("zzz", ["b", "a"]) == "; known: a, b"
    assert nearest("colur", ["colour", "size"]) == "; did you mean colour?"
