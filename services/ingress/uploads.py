"""Uploads as they stream in: a form with one file, of which never more is in memory than the network has just brought.

Starlette's own parser was rejected: it writes each file to the disk of this machine first, up to the whole limit for every
client at once, and only then hands it over.
"""

from collections.abc import AsyncGenerator

import msgspec
from msgspec import Struct
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.types import Receive, Scope

from services.ingress.http import ClientGone, header
from shared.errors import UNDECODABLE, FileTooLarge, InvalidRequest
from shared.forms import FORM, LONGEST_TYPE, boundary_of, disposition

FIELD_BYTES = 4096
"""Of the value of one field: purposes and numbers."""
FRAME_BYTES = 64 * 1024
"""What a form has beside its file, at most."""
MOST_FAULTS = 10
"""Lines that are told of. Behind them lines are only counted: a file of nothing but faults would keep the event loop busy."""
FAULT_LENGTH = 200


class Form:
    """`open`, then `pieces` to their end, then `close`; afterwards `fields` has what was sent beside the file, before or behind it."""

    def __init__(self, scope: Scope, receive: Receive, limit_bytes: int) -> None:
        """Raises: FileTooLarge, InvalidRequest."""
        content_type = header(scope, b"content-type")
        boundary = boundary_of(content_type)
        if content_type.partition(";")[0].strip().lower() != FORM or not boundary:
            raise InvalidRequest(
                f"The header Content-Type is {content_type[:80]!r}; expected {FORM} with its boundary,"
                f" in at most {LONGEST_TYPE} printable characters of ASCII."
            )
        announced = header(scope, b"content-length")
        if announced.isdigit() and int(announced) > limit_bytes + FRAME_BYTES:
            raise FileTooLarge(limit_bytes)
        self.fields: dict[str, str] = {}
        self.filename = ""
        self.size = 0
        self._receive, self._limit_bytes = receive, limit_bytes
        self._beside = 0
        """Bytes that have come and are not the file's."""
        self._begun = self._ended = self._whole = False
        self._name, self._header, self._said, self._value = "", bytearray(), bytearray(), bytearray()
        self._in_file = self._told = False
        self._data: list[bytes] = []
        self._parser = _parser(boundary, self)

    async def open(self) -> None:
        """Until the file begins. Raises: InvalidRequest, ClientGone."""
        while not self._begun:
            if self._whole:
                raise InvalidRequest("The form has no `file`.", param="file")
            await self._pump()

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Of the file. Raises: FileTooLarge, InvalidRequest, ClientGone."""
        while True:
            for piece in self._data:
                self.size += len(piece)
                if self.size > self._limit_bytes:
                    raise FileTooLarge(self._limit_bytes)
                yield piece
            self._data.clear()
            if self._ended:
                return
            await self._pump()

    async def close(self) -> None:
        """What is behind the file. Raises: InvalidRequest, ClientGone."""
        while not self._whole:
            await self._pump()

    async def _pump(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body = bytes(message.get("body", b""))
        self._beside += len(body)
        try:
            self._parser.write(body)
        except FormParserError as error:
            raise InvalidRequest(f"The body is not valid {FORM}: {error}") from None
        if self._beside > FRAME_BYTES:
            raise InvalidRequest(f"The form has more than {FRAME_BYTES} bytes beside its `file`.")
        if not self._whole and not message.get("more_body"):
            raise InvalidRequest(f"The body is not valid {FORM}: it ends before its last boundary.")

    # -- what the parser calls

    def on_part_begin(self) -> None:
        self._name, self._in_file, self._told = "", False, False
        self._value.clear()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._said += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            options = disposition(bytes(self._said), again=self._told)
            self._told, self._name = True, options.get(b"name", b"").decode(errors="replace")
            if b"filename" in options:
                self._in_file, self.filename = True, options[b"filename"].decode(errors="replace")
        self._header.clear()
        self._said.clear()

    def on_headers_finished(self) -> None:
        if self._in_file != (self._name == "file"):
            expected = "a file, with a `filename`" if self._name == "file" else "text, without a `filename`"
            raise InvalidRequest(f"The part `{self._name[:80]}` of the form must be {expected}.", param=self._name[:80])
        if self._in_file and self._begun:
            raise InvalidRequest("The form has more than one `file`.", param="file")
        self._begun |= self._in_file

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._data.append(data[start:end])
            self._beside -= end - start
            return
        self._value += data[start:end]
        if len(self._value) > FIELD_BYTES:
            raise InvalidRequest(
                f"The field `{self._name[:80]}` is longer than {FIELD_BYTES} bytes.", param=self._name[:80]
            )

    def on_part_end(self) -> None:
        if self._in_file:
            self._ended = True
        else:
            self.fields[self._name] = self._value.decode(errors="replace")

    def on_end(self) -> None:
        self._whole = True


def _parser(boundary: bytes, form: Form) -> MultipartParser:
    """Raises: InvalidRequest."""
    names = (
        "part_begin",
        "header_field",
        "header_value",
        "header_end",
        "headers_finished",
        "part_data",
        "part_end",
        "end",
    )
    try:
        return MultipartParser(boundary, {f"on_{name}": getattr(form, f"on_{name}") for name in names})  # type: ignore[arg-type]
    except FormParserError as error:
        raise InvalidRequest(f"The header Content-Type: {error}") from None


class _Line(Struct):
    custom_id: str


_line = msgspec.json.Decoder(_Line)


class Lines:
    """Counts lines of JSON as they go by, and notes the first that a batch is going to refuse, whatever else it asks of them."""

    def __init__(self, longest: int) -> None:
        """`longest`: bytes of a line; a longer one is not kept to be looked at."""
        self.count = 0
        """Those that are not empty."""
        self._number = 0
        self._faults: list[str] = []
        self._longest, self._length, self._begun = longest, 0, list[bytes]()

    def feed(self, data: bytes) -> None:
        first, newline, rest = data.partition(b"\n")
        self._add(first)
        if newline:
            self._end()
            *whole, last = rest.split(b"\n")
            for line in whole:
                if line:
                    self._look(line, len(line))
                else:
                    self._number += 1
            self._add(last)

    def close(self) -> None:
        """The last line may lack its end."""
        if self._length:
            self._end()

    @property
    def details(self) -> str:
        wrong = len(self._faults)
        least = "at least " if wrong == MOST_FAULTS else ""
        return f"{least}{wrong} of {self.count} lines will fail: {'; '.join(self._faults)}" if wrong else ""

    def _add(self, part: bytes) -> None:
        self._length += len(part)
        if self._length <= self._longest:
            self._begun.append(part)

    def _end(self) -> None:
        line, length = b"".join(self._begun), self._length
        self._length, self._begun = 0, []
        self._look(line, length)

    def _look(self, line: bytes, length: int) -> None:
        self._number += 1
        if length <= self._longest and not line.strip():
            return
        self.count += 1
        if len(self._faults) < MOST_FAULTS and (fault := self._fault(line, length)):
            self._faults.append(f"line {self._number}: {fault[:FAULT_LENGTH]}")

    def _fault(self, line: bytes, length: int) -> str:
        if length > self._longest:
            return f"it has {length} bytes, at most {self._longest} are allowed"
        try:
            _line.decode(line)
        except UNDECODABLE as error:
            return str(error)
        return ""
