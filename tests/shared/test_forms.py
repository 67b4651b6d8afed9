"""Forms are read by place: values come out as they are, whatever looks like a boundary and is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from shared.forms import LONGEST_TYPE, MOST_OPTIONS, MOST_PARTS, field, parts, with_field, without_boundary

TYPE = "multipart/form-data; boundary=bound"


def form(*fields: tuple[str, str, bytes]) -> bytes:
    made = b""
    for name, filename, value in fields:
        file = f'; filename="{filename}"' if filename else ""
        made += f'--bound\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + value + b"\r\n"
    return made + b"--bound--\r\n"


@given(
    st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from([b"\r\n--boun", b"\r\n-", b"\r", b"-\r\n--b\r\n"])),
        max_size=6,
    )
)
def test_every_value_is_where_it_is_said_to_be(pieces: list[bytes]) -> None:
    value = b"a" + b"".join(pieces)
    if b"--bound" in value:
        return
    body = form(("file", "x.bin", value), ("model", "", b"m"))
    file, model = parts(body, TYPE)
    assert (file.name, file.filename, body[file.start : file.end]) == ("file", "x.bin", value)
    assert body[model.start : model.end] == b"m"


def test_the_last_of_two_fields_counts_and_a_file_is_no_field() -> None:
    body = form(("model", "", b"a"), ("model", "", b"b"), ("model", "m.txt", b"c"))
    found = parts(body, TYPE)
    assert field(body, found, "model") == "b"
    assert field(body, found, "other") is None
    assert with_field(body, found, "model", "much longer") == body.replace(b"\r\nb\r\n", b"\r\nmuch longer\r\n")
    assert with_field(body, found, "other", "x") == body


@pytest.mark.parametrize("body", [b"", b"{}", form(("a", "", b"1"))[:-4], b"--other\r\n\r\n--other--"])
def test_what_is_no_form_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parts(body, TYPE)


@pytest.mark.parametrize(
    "odd", ['; y="\r\nA: b"', "; y=\t", "; y=\x7f", "; y=\xe9", "; y=日", "; y=" + "z" * LONGEST_TYPE]
)
def test_a_content_type_that_can_be_no_header_is_refused(odd: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parts(form(("model", "", b"m")), TYPE + odd)
    assert caught.value.param == "content_type"
    assert str(LONGEST_TYPE) in str(caught.value)


def test_two_tries_of_a_form_differ_in_nothing_but_the_boundary() -> None:
    body = form(("file", "a.wav", b"\xff--\r\n"), ("model", "", b"m"))
    again = body.replace(b"--bound", b"--other")
    assert without_boundary(body, TYPE) == without_boundary(again, "multipart/form-data; boundary=other")
    for changed in (body.replace(b"m\r\n--bound--", b"n\r\n--bound--"), body.replace(b"a.wav", b"b.wav")):
        assert without_boundary(changed, TYPE) != without_boundary(body, TYPE)


def test_a_form_that_would_keep_the_event_loop_busy_is_refused() -> None:
    fields = [(str(number), "", b"") for number in range(MOST_PARTS + 1)]
    assert len(parts(form(*fields[1:]), TYPE)) == MOST_PARTS
    with pytest.raises(InvalidRequest, match=f"more than {MOST_PARTS} parts"):
        parts(form(*fields), TYPE)
    (odd,) = parts(form(("file", "a;" * (MOST_OPTIONS - 2), b"")), TYPE)
    assert odd.filename == "a;" * (MOST_OPTIONS - 2)
    with pytest.raises(InvalidRequest, match=f"more than {MOST_OPTIONS} semicolons"):
        parts(form(("file", "a;" * (MOST_OPTIONS - 1), b"")), TYPE)
    with pytest.raises(InvalidRequest, match="two headers Content-Disposition"):
        parts(form(("a", "", b"")).replace(b"\r\n\r\n", b"\r\nContent-Disposition: form-data\r\n\r\n", 1), TYPE)
