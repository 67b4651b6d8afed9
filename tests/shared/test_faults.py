from typing import Annotated, Literal

from msgspec import Meta, Struct

from shared.faults import SHOWN, nearest, read_fields, read_tables


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


def test_one_fault_does_not_list_ten_thousand_names() -> None:
    told = nearest("zzz", [f"tenant-{number:05}" for number in range(10_000)])
    assert told.endswith(f", tenant-{SHOWN - 1:05} and {10_000 - SHOWN} more")


class Box(Struct):
    things: Annotated[list[Thing], Meta(min_length=1)]
    best: Thing | None = None


def test_tables_within_a_field_are_read_by_the_same_rules() -> None:
    faults: list[str] = []
    data = {"a": {"things": [{"size": 0}, {"sise": 1}], "best": {"size": 1, "colour": "green"}}, "b": 3}
    assert read_tables(Box, {"boxes": data}, "boxes", faults) == {}
    assert faults == [
        "boxes.a.things[0].size is 0: Expected `int` >= 1",
        "boxes.a.things[1].sise: unknown; did you mean boxes.a.things[1].size?",
        "boxes.a.things[1].size is missing",
        "boxes.a.best.colour is 'green': allowed: red, blue",
        "boxes.b is 3: expected a table, [boxes.b]",
    ]


def test_valid_tables_come_back_by_name() -> None:
    faults: list[str] = []
    data = {"boxes": {"a": {"things": [{"size": 1}]}, "b": {"things": []}, "c": {"things": [3]}}}
    assert read_tables(Box, data, "boxes", faults) == {"a": Box(things=[Thing(size=1)])}
    assert [fault.partition(":")[0] for fault in faults] == ["boxes.b.things is []", "boxes.c.things is [3]"]
