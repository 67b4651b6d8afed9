"""Every error of Headrace.

HeadraceError
  RequestError            the sender's fault; carries what an OpenAI client expects to see
    InvalidRequest        400  a field is missing, wrong or unknown
    InvalidTaskId         404  not an id of ours
    TaskNotFound          404  unknown, or its result has expired
    DeadLetterNotFound    404  unknown, dropped, or requeued
    ModelNotFound         404  no pool serves the model
    IdempotencyConflict   409  the same key with another body
    BodyTooLarge          413
    BacklogFull           429  the shard accepts no more waiting tasks
  BusError                Redis, translated at one boundary (shared/bus/connection.py)
    BusUnavailable        no connection, or no answer in time; nothing is known of the command
      NotConfirmed        written, but in fewer places than the durability in force asks for
    ConnectionLost        the connection broke with the command in flight; it may have run
    CommandRefused        Redis answered with an error
      WrongKeyType        a key holds another Redis type than it must
      MemoryFull          no room for new tasks; what waits and runs goes on
      ClusterRedirect     the key lives on another node of a cluster, where we do not follow
  IllegalTransition       a state that cannot follow
  ConfigError             every fault of the configuration at once
"""

from collections.abc import Sequence

from msgspec import Struct


class ErrorBody(Struct, frozen=True, kw_only=True):
    """The inner object of an OpenAI-shaped error."""

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class HeadraceError(Exception):
    """Root of all."""


class RequestError(HeadraceError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    @property
    def body(self) -> ErrorBody:
        return ErrorBody(message=str(self), type=self.type, param=self.param, code=self.code)


class InvalidRequest(RequestError):
    pass


class InvalidTaskId(RequestError):
    status, code = 404, "task_not_found"

    def __init__(self, task_id: str) -> None:
        super().__init__(f"{task_id[:80]!r} is not the id of a task.", param="id")


class TaskNotFound(RequestError):
    status, code = 404, "task_not_found"

    def __init__(self, task_id: str) -> None:
        super().__init__(f"The task {task_id} does not exist, or its result has expired.", param="id")


class DeadLetterNotFound(RequestError):
    status, code = 404, "dead_letter_not_found"

    def __init__(self, letter: str) -> None:
        super().__init__(f"There is no dead letter {letter[:80]!r}; it may have been requeued or dropped.", param="id")


class ModelNotFound(RequestError):
    status, code, type = 404, "model_not_found", "NotFoundError"

    def __init__(self, model: str, known: Sequence[str]) -> None:
        super().__init__(f"The model `{model}` does not exist. Served here: {', '.join(known)}.", param="model")


class IdempotencyConflict(RequestError):
    status, code = 409, "idempotency_conflict"

    def __init__(self, key: str) -> None:
        super().__init__(f"The key {key!r} was used before with another body. Choose a new key.", param="task_id")


class BodyTooLarge(RequestError):
    status, code = 413, "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The body is larger than {limit_bytes} bytes (limits.body_bytes).")


class BacklogFull(RequestError):
    status, code, type = 429, "backlog_full", "rate_limit_error"
    retry_after_s = 5

    def __init__(self, pool: str, limit: int) -> None:
        super().__init__(f"The pool {pool} has {limit} tasks waiting (limits.backlog). Try again later.")


class BusError(HeadraceError):
    pass


class BusUnavailable(BusError):
    pass


class NotConfirmed(BusUnavailable):
    pass


class ConnectionLost(BusError):
    pass


class CommandRefused(BusError):
    pass


class WrongKeyType(CommandRefused):
    pass


class MemoryFull(CommandRefused):
    pass


class ClusterRedirect(CommandRefused):
    pass


class IllegalTransition(HeadraceError):
    def __init__(self, task_id: str, source: str, target: str, allowed: Sequence[str]) -> None:
        super().__init__(
            f"task {task_id} cannot go from {source} to {target}; allowed: {', '.join(allowed) or 'nothing'}"
        )


class ConfigError(HeadraceError):
    """The message lists every fault, one a line."""
