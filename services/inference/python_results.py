"""What a callable of the python engine is given and what it makes of it, as its process passes them on."""

import re
import traceback
from collections.abc import Mapping
from typing import Any

import msgspec

from services.inference.python_frames import RESULT_BYTES, Broken, Fault, Ready, Report, Unready, Value, frame

MESSAGE_CHARS = 2000
"""Of an error that goes to a client."""
_CONTENT_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(;[ -~]*)?", re.ASCII)

Result = Value | Fault


class WrongResult(Exception):
    """The callable returned something that is no answer."""


def read_body(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Fault(400, f"The body is not valid JSON: {error}", "invalid_request")


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
    """What the callable made of one body: JSON, bytes with their content type, or an error."""
    match made:
        case Fault():
            return made
        case BaseException():
            return fault_of(made)
        case (bytes() | bytearray() | memoryview() as held, str(content_type)):
            data = bytes(held)
            if data and _CONTENT_TYPE.fullmatch(content_type):
                return Value(data, content_type)
            return Fault(500, f"The callable returned {len(data)} bytes of the content type {content_type[:100]!r}.")
    try:
        return Value(to_json(made))
    except WrongResult as error:
        return Fault(500, str(error))


def to_json(made: Any) -> bytes:
    """Raises: WrongResult."""
    if isinstance(made, bytes | bytearray | memoryview):
        raise WrongResult("The callable returned bytes without a content type: return (bytes, 'image/png'), say.")
    try:
        return msgspec.json.encode(made, enc_hook=_plain)
    except Exception as error:
        raise WrongResult(f"The callable returned {_kind(made)}, which is no JSON: {_words(error)}") from error


def _plain(value: Any) -> Any:
    """Arrays and numbers of numpy and its kin. Raises: NotImplementedError."""
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    raise NotImplementedError(f"it holds {_kind(value)}")


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
    try:
        return str(error)[:MESSAGE_CHARS] or type(error).__name__
    except Exception:  # noqa: BLE001  an error may be unable to say what it is
        return type(error).__name__
