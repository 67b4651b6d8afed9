"""Forms as they stream in, cut anywhere, and a look at the lines that go by."""

import contextlib
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from python_multipart.multipart import parse_options_header
from starlette.types import Message, Receive, Scope

from services.ingress.http import ClientGone
from services.ingress.uploads import FRAME_BYTES, MOST_FAULTS, Form, Lines
from shared import forms
from shared.errors import FileTooLarge, InvalidRequest
from shared.forms import MOST_OPTIONS

BOUNDARY = "frontier"
LIMIT = 1000


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + value + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def scope(**headers: str) -> Scope:
    given = {"content_type": f"multipart/form-data; boundary={BOUNDARY}"} | headers
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    return {"type": "http", "headers": named}


def arriving(*pieces: bytes, whole: bool = True) -> Receive:
    left = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    left.append({"type": "http.request", "body": b""} if whole else {"type": "http.disconnect"})

    async def receive() -> Message:
        return left.pop(0)

    return receive


async def read(*pieces: bytes, whole: bool = True, limit: int = LIMIT) -> tuple[Form, bytes]:
    form = Form(scope(), arriving(*pieces, whole=whole), limit)
    await form.open()
    data = b"".join([piece async for piece in form.pieces()])
    await form.close()
    return form, data


DATA = b"first\r\n--frontie\r\n--\nlast\x00\xff"
WHOLE = body(part("purpose", b"batch"), part("file", DATA, "in.jsonl"), part("expires_after[seconds]", b"3600"))


@given(st.lists(st.integers(0, len(WHOLE)), max_size=20))
async def test_a_form_is_the_same_wherever_the_network_cuts_it(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(WHOLE)]
    form, data = await read(*(WHOLE[a:b] for a, b in itertools.pairwise(places)))
    assert data == DATA
    assert (form.filename, form.size) == ("in.jsonl", len(DATA))
    assert form.fields == {"purpose": "batch", "expires_after[seconds]": "3600"}


async def test_fields_that_come_before_the_file_are_known_before_its_first_byte() -> None:
    form = Form(scope(), arriving(WHOLE), LIMIT)
    await form.open()
    assert form.fields["purpose"] == "batch"


async def test_an_empty_file_is_one() -> None:
    form, data = await read(body(part("file", b"", "in.jsonl")))
    assert (data, form.filename) == (b"", "in.jsonl")


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (body(part("purpose", b"batch")), "no `file`"),
        (body(part("file", b"x")), "must be a file"),
        (body(part("purpose", b"x", "x")), "must be text"),
        (body(part("file", b"x", "a"), part("file", b"x", "b")), "more than one"),
        (body(part("purpose", b"x" * 5000), part("file", b"x", "a")), "longer than 4096"),
        (part("file", b"x", "a"), "ends before its last boundary"),
        (b"", "ends before its last boundary"),
        (b"nonsense", "not valid multipart/form-data"),
    ],
)
async def test_a_broken_form_is_refused_with_what_is_wrong(sent: bytes, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        await read(sent)


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "multipart/form-data", f"multipart/form-data; boundary={'x' * 300}"]
)
async def test_a_body_of_another_kind_is_refused_by_its_header(content_type: str) -> None:
    with pytest.raises(InvalidRequest, match="Content-Type"):
        Form(scope(content_type=content_type), arriving(b""), LIMIT)


async def test_a_client_that_leaves_ends_it() -> None:
    with pytest.raises(ClientGone):
        await read(WHOLE[:-20], whole=False)


async def test_a_file_over_the_limit_is_refused_by_its_announcement_and_by_what_comes() -> None:
    with pytest.raises(FileTooLarge, match=r"1000 bytes \(limits.file_bytes\)"):
        Form(scope(content_length=str(LIMIT + FRAME_BYTES + 1)), arriving(b""), LIMIT)
    with pytest.raises(FileTooLarge):
        await read(body(part("file", b"x" * (LIMIT + 1), "a")))
    assert len((await read(body(part("file", b"x" * LIMIT, "a"))))[1]) == LIMIT


def saying(*dispositions: str) -> bytes:
    lines = "\r\n".join(f"Content-Disposition: {said}" for said in dispositions)
    return f"--{BOUNDARY}\r\n{lines}\r\n\r\n\r\n".encode()


@pytest.mark.parametrize(
    "sent",
    [
        saying("form-data" + ";" * 4000) * 15,
        saying("form-data" + ';a="' * 1000) * 15,
        saying("form-data" + ";" * MOST_OPTIONS) * 500,
    ],
    ids=["long headers", "with quotes", "many parts"],
)
async def test_what_headers_cost_is_in_proportion_to_their_bytes(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes the square of a header's semicolons."""
    costs: list[int] = []

    def counted(header: bytes | str) -> tuple[bytes, dict[bytes, bytes]]:
        said = header if isinstance(header, bytes) else header.encode()
        costs.append((1 + said.count(b";")) ** 2)
        return parse_options_header(header)

    monkeypatch.setattr(forms, "parse_options_header", counted)
    with contextlib.suppress(InvalidRequest):
        await read(sent, body(part("file", b"x", "a")))
    assert sum(costs) <= (1 + MOST_OPTIONS) * len(sent)


async def test_a_part_names_itself_once() -> None:
    twice = saying('form-data; name="purpose"; filename="a"', 'form-data; name="purpose"')
    with pytest.raises(InvalidRequest, match="two headers Content-Disposition"):
        await read(twice, body(part("file", b"x", "a")))


async def test_the_header_of_a_form_is_bounded_before_it_is_read() -> None:
    with pytest.raises(InvalidRequest, match=r"Content-Type .* in at most 256 printable"):
        Form(scope(content_type=f"multipart/form-data; boundary={BOUNDARY}{';' * 60_000}"), arriving(b""), LIMIT)


@pytest.mark.parametrize("file_first", [False, True])
async def test_what_stands_beside_the_file_is_bounded_however_it_comes(file_first: bool) -> None:
    """Fields are kept in memory, and nothing else ends a form that never has its file."""
    file = part("file", b"x", "a")
    fields = [part(f"f{number}", b"x" * 4000) for number in range(20)]
    with pytest.raises(InvalidRequest, match="more than 65536 bytes beside its `file`"):
        await read(*([file, *fields] if file_first else [*fields, file]), body())


async def test_a_file_is_nothing_beside_itself() -> None:
    pieces = [part("file", b"\r\n--front" * 20_000, "a"), body(part("purpose", b"x" * 4000))]
    assert len((await read(*pieces, limit=1 << 20))[1]) == 180_000


# -- lines


def looked_at(text: bytes, *, longest: int = 100, cut: int = 1 << 20) -> Lines:
    lines = Lines(longest)
    for start in range(0, len(text), cut):
        lines.feed(text[start : start + cut])
    lines.close()
    return lines


GOOD = json.dumps({"custom_id": "a", "body": {}}).encode()


@pytest.mark.parametrize("cut", [1, 7, 1 << 20])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n \n"])
def test_lines_are_counted_without_empty_ones_wherever_they_are_cut(cut: int, end: bytes) -> None:
    lines = looked_at(b"\n".join([GOOD, b"", GOOD, b"  ", GOOD]) + end, cut=cut)
    assert (lines.count, lines.details) == (3, "")


def test_an_empty_file_has_no_line() -> None:
    assert looked_at(b"").count == 0


@pytest.mark.parametrize("cut", [1, 1 << 20])
def test_faults_are_told_by_line_and_the_rest_is_counted(cut: int) -> None:
    bad = [b"{", b"[1]", b'{"custom_id": 1}', b'{"custom_id": "x", "body": \xff}', b"x" * 101]
    lines = looked_at(b"\n".join([GOOD, b"", *bad, GOOD]), cut=cut)
    assert lines.count == 7
    assert lines.details.startswith("5 of 7 lines will fail: line 3: ")
    for number, fault in enumerate(("truncated", "object", "custom_id", "line", "101 bytes, at most 100"), 3):
        assert fault in lines.details.partition(f"line {number}: ")[2]


def test_a_line_too_deep_to_be_read_is_a_fault_like_any_other() -> None:
    deep = b'{"custom_id": "a", "x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    lines = looked_at(b"\n".join([GOOD, deep, GOOD]), longest=100_000)
    assert lines.details.startswith("1 of 3 lines will fail: line 2: ")


def test_of_many_faults_the_first_are_told() -> None:
    lines = looked_at(b"x\n" * 100)
    assert lines.count == 100
    assert lines.details.count("line ") == MOST_FAULTS
    assert lines.details.startswith("at least 10 of 100 lines will fail: ")


def test_a_line_without_end_costs_no_memory() -> None:
    lines = Lines(1000)
    for _ in range(10_000):
        lines.feed(b"x" * 1000)
    assert sum(map(len, lines._begun)) <= 1000
    lines.close()
    assert lines.count == 1
