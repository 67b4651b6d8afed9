"""What a callable of the python engine is given and what it makes of it, as its process passes them on."""

import traceback
from collections.abc import Mapping
from typing import Any

import msgspec

from services.inference.python_frames import (
    CONTENT_TYPE,
    RESULT_BYTES,
    Body,
    Broken,
    Fault,
    File,
    Ready,
    Report,
    Unready,
    Value,
    file,
    frame,
)
from shared.errors import UNDECODABLE, InvalidRequest
from shared.forms import parts

MESSAGE_CHARS = 2000
"""Of an error that goes to a client."""
NAME_CHARS = 255
"""Of a file, as for uploads."""

Result = Value | Fault


class WrongResult(Exception):
    """The callable returned something that is no answer."""


def read_body(body: Body) -> Any:
    """What the callable is given; a Fault if the body is none."""
    try:
        return read_form(body) if body.content_type else with_files(msgspec.json.decode(body.data), body.files)
    except UNDECODABLE as error:
        return Fault(400, f"The body is not valid JSON: {error}", "invalid_request")
    except InvalidRequest as error:
        return Fault(400, str(error), error.code)


def with_files(body: Any, files: Mapping[str, File]) -> Any:
    """A file in each place where its id stands. The body is changed. Without recursion: it may be deep."""
    if isinstance(body, str):
        return files.get(body, body)
    left = [body] if files else []
    while left:
        held = left.pop()
        for place, value in list(held.items() if isinstance(held, dict) else enumerate(held)):
            if isinstance(value, str):
                held[place] = files.get(value, value)
            elif isinstance(value, dict | list):
                left.append(value)
    return body


def read_form(body: Body) -> dict[str, Any]:
    """Fields as str and files as File, by name; a list of them where a name comes twice or ends in []. Raises: InvalidRequest."""
    found: dict[str, list[str | File]] = {}
    lists = set()
    for part in parts(body.data, body.content_type):
        data, name = body.data[part.start : part.end], part.name.removesuffix("[]")
        value = file(part.filename, part.content_type, data) if part.filename else _text(part.name, data)
        found.setdefault(name, []).append(value)
        if name != part.name or len(found[name]) > 1:
            lists.add(name)
    return {name: values if name in lists else values[0] for name, values in found.items()}


def _text(name: str, data: bytes) -> str:
    """Raises: InvalidRequest."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The field {name[:80]!r} is not UTF-8: {error}", param=name) from None


def spread(given: list[Any], made: Any) -> list[Result]:
    """The results of a batch, one for each body that was given. Raises: WrongResult."""
    if isinstance(made, str | bytes | Mapping) or not hasattr(made, "__len__"):
        raise WrongResult(f"A batch is answered with a list of results; the callable returned {_kind(made)}.")
    results, asked = list(made), sum(not isinstance(body, Fault) for body in given)
    if len(results) != asked:
        raise WrongResult(f"The callable returned {len(results)} results for a batch of {asked}.")
    left = iter(results)
    return [body if isinstance(body, Fault) else result(next(left)) for body in given]


def result(made: Any) -> Result:
    """What the callable made of one body: JSON, bytes with their content type and perhaps a file's name, or an error."""
    match made:
        case Fault():
            return made
        case BaseException():
            return fault_of(made)
        case (bytes() | bytearray() | memoryview() as held, str(content_type)):
            return _binary(bytes(held), content_type)
        case (bytes() | bytearray() | memoryview() as held, str(content_type), str(filename)):
            if not filename:
                return Fault(500, "The callable returned a file without a name: leave the name out, or return one.")
            return _binary(bytes(held), content_type, _cleaned(filename))
    try:
        return Value(to_json(made))
    except WrongResult as error:
        return Fault(500, str(error))


def _binary(data: bytes, content_type: str, filename: str = "") -> Result:
    if data and CONTENT_TYPE.fullmatch(content_type):
        return Value(data, content_type, filename)
    return Fault(500, f"The callable returned {len(data)} bytes of the content type {content_type[:100]!r}.")


def _cleaned(filename: str) -> str:
    """It was mostly made of what a client calls its file, and no name of a client's is a fault of the callable."""
    return "".join(char if char.isprintable() else "_" for char in filename[:NAME_CHARS])


def to_json(made: Any) -> bytes:
    """Raises: WrongResult."""
    if isinstance(made, bytes | bytearray | memoryview):
        raise WrongResult("The callable returned bytes without a content type: return (bytes, 'image/png'), say.")
    try:
        return msgspec.json.encode(made, enc_hook=_plain)
    except Exception as error:
        raise WrongResult(f"The callable returned {_kind(made)}, which is no JSON: {_words(error)}") from error


def _plain(value: Any) -> Any:
    """Arrays and numbers of numpy and its kin. Raises: TypeError."""
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    raise TypeError(f"it holds {_kind(value)}")


def fault_of(error: BaseException) -> Fault:
    """A ValueError is the request's; anything else the callable's, and its traceback goes to the log."""
    if isinstance(error, WrongResult):
        return Fault(500, str(error))
    if isinstance(error, ValueError):
        return Fault(400, _words(error), "invalid_request")
    traceback.print_exception(error)
    if isinstance(error, SystemExit):
        return Fault(500, f"The callable called sys.exit({_words(error)}).")
    return Fault(500, f"The callable raised {type(error).__name__}: {_words(error)}")


def bounded(report: Report) -> bytes:
    """The frame of a report, or of the fault that it is too large."""
    data = frame(report)
    if len(data) <= RESULT_BYTES or isinstance(report, Ready | Unready):
        return data
    message = f"The callable returned {len(data)} bytes at once; at most {RESULT_BYTES} can be passed on."
    return frame(Broken(report.id, Fault(500, message)))


def _kind(value: Any) -> str:
    return f"a value of the type {type(value).__name__}"


def _words(error: BaseException) -> str:
    """Half a surrogate pair, which Python allows in a string, could not be passed on: it would end this process."""
    try:
        return str(error)[:MESSAGE_CHARS].encode(errors="replace").decode() or type(error).__name__
    except Exception:  # noqa: BLE001  an error may be unable to say what it is
        return type(error).__name__
