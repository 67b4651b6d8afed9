"""Bodies of multipart/form-data: their parts by place, so that one value can be changed and every other byte stays."""

from typing import TYPE_CHECKING

from msgspec import Struct
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from shared.errors import InvalidRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM = "multipart/form-data"
LONGEST_TYPE = 256
"""Characters of a form's content type. A boundary has 70 at most."""
MOST_PARTS = 256
"""Of a form. Each takes some 50 us of the event loop that reads it, however small it is: 4 MB of them would stop it for seconds."""
MOST_OPTIONS = 64
"""Semicolons in what a part says of itself. The library takes the square of their number."""


class Part(Struct):
    name: str = ""
    filename: str = ""
    """Empty: it is a field, not a file."""
    content_type: str = ""
    """Empty: the form does not say."""
    start: int = 0
    end: int = 0
    """Its value is body[start:end]."""


class _Reader:
    """Callbacks of the parser. The body comes in one piece, so the places that it tells are places in the body."""

    def __init__(self, body: bytes) -> None:
        self.parts: list[Part] = []
        self.whole = self._told = False
        self._body, self._name, self._value, self._lead = body, b"", b"", 0

    def on_part_begin(self) -> None:
        """Raises: InvalidRequest."""
        if len(self.parts) == MOST_PARTS:
            raise InvalidRequest(f"The form has more than {MOST_PARTS} parts.")
        self.parts.append(Part())
        self._lead, self._told = 0, False

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        """Raises: InvalidRequest."""
        if self._name.lower() == b"content-disposition":
            options = disposition(self._value, again=self._told)
            self._told, part = True, self.parts[-1]
            part.name = options.get(b"name", b"").decode(errors="replace")
            part.filename = options.get(b"filename", b"").decode(errors="replace")
        elif self._name.lower() == b"content-type":
            self.parts[-1].content_type = self._value.decode(errors="replace").strip()
        self._name = self._value = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        if data is not self._body:  # what looked like the begin of a boundary and was none: told in a copy of it
            self._lead += end - start
            return
        part.start = part.start or start - self._lead
        part.end = end

    def on_end(self) -> None:
        self.whole = True


def parts(body: bytes, content_type: str) -> list[Part]:
    """Raises: InvalidRequest."""
    boundary = boundary_of(content_type)
    if not boundary:
        raise InvalidRequest(
            f"The content type of the form is {content_type[:80]!r}; expected {FORM} with its boundary,"
            f" in at most {LONGEST_TYPE} printable characters of ASCII.",
            param="content_type",
        )
    reader = _Reader(body)
    calls: MultipartCallbacks = {
        "on_part_begin": reader.on_part_begin,
        "on_header_field": reader.on_header_field,
        "on_header_value": reader.on_header_value,
        "on_header_end": reader.on_header_end,
        "on_part_data": reader.on_part_data,
        "on_end": reader.on_end,
    }
    try:
        MultipartParser(boundary, calls).write(body)
    except FormParserError as error:
        raise InvalidRequest(f"The body is not valid {FORM}: {error}") from None
    if not reader.whole:
        raise InvalidRequest(f"The body is not valid {FORM}: it ends before its last boundary.")
    return reader.parts


def disposition(value: bytes, *, again: bool) -> dict[bytes, bytes]:
    """What a part says of itself. `again`: it has done so before. Raises: InvalidRequest."""
    if again or value.count(b";") > MOST_OPTIONS:
        raise InvalidRequest(
            f"A part of the form has two headers Content-Disposition, or one with more than {MOST_OPTIONS} semicolons."
        )
    return parse_options_header(value)[1]


def without_boundary(body: bytes, content_type: str) -> bytes:
    """What two tries of one request have in common: clients draw the boundary of a form anew for each."""
    boundary = boundary_of(content_type)
    return body.replace(b"--" + boundary, b"--") if boundary else body


def boundary_of(content_type: str) -> bytes:
    """Empty: it has none, or can be no header: an engine behind HTTP gets it as it is."""
    if len(content_type) > LONGEST_TYPE or not (content_type.isascii() and content_type.isprintable()):
        return b""
    return parse_options_header(content_type)[1].get(b"boundary", b"")


def field(body: bytes, found: list[Part], name: str) -> str | None:
    """The value of a field, the last one if it comes twice, as servers read it; None: there is none. Raises: InvalidRequest."""
    part = next((part for part in reversed(found) if part.name == name and not part.filename), None)
    if part is None:
        return None
    try:
        return body[part.start : part.end].decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The field `{name}` is not UTF-8: {error}", param=name) from None


def with_field(body: bytes, found: list[Part], name: str, value: str) -> bytes:
    """The body with another value of a field that it has."""
    part = next((part for part in reversed(found) if part.name == name and not part.filename), None)
    return body if part is None else body[: part.start] + value.encode() + body[part.end :]
