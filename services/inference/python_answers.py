"""How what came of a call in the python engine is answered."""

import logging

from services.inference.engine import Answer
from services.inference.python_frames import Fault, Value
from shared.errors import ErrorBody, HeadraceError, RequestError
from shared.messages import encode

log = logging.getLogger(__name__)


def answer(result: Value | Fault) -> Answer | Value:
    """A value that is to be kept as a file is no answer yet."""
    if isinstance(result, Fault):
        return refuse(result.status, result.message, result.code)
    return result if result.filename else Answer(status=200, body=result.body, content_type=result.content_type)


def refuse(status: int, message: str, code: str) -> Answer:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return Answer(status=status, body=encode({"error": ErrorBody(message=message, type=kind, code=code)}))


def without_files(error: HeadraceError | TimeoutError) -> Answer:
    """A file of the call cannot be read or kept. That of a store out of reach is tried again; where it lies is told to the log."""
    if isinstance(error, RequestError):
        return Answer(status=error.status, body=encode({"error": error.body}))
    log.error("a file cannot be read or kept: %s: %s", type(error).__name__, error)
    return refuse(503, "The object store cannot be reached, or has lost the file.", "store_unavailable")
