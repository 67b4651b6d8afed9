"""Every error of Headrace.

HeadraceError
  RequestError            the sender's fault; carries what an OpenAI client expects to see
    InvalidRequest        400  a field is missing, wrong or unknown
    TemplateNotFound      400
    TemplateFailed        400  the template cannot be filled in with what the request says
    TokensOverLimit       400  it may use more tokens than its tenant or key may in a whole minute
    Unauthorized          401  no API key, or one that is not known
    Forbidden             403  it names a tenant that is not the caller's
    ProducerUnknown       403  its stream door belongs to no tenant
    InvalidTaskId         404  not an id of ours
    TaskNotFound          404  unknown, or its result has expired
    ResponseNotFound      404  unknown, deleted, expired, or not to be kept
    NotEnded              409  the task has no result yet
    DeadLetterNotFound    404  unknown, dropped, or requeued
    BodyGone              410  the body of a dead letter is not kept any more
    BatchNotFound         404  unknown, or expired
    FileNotFound          404  unknown, deleted, or expired
    ModelNotFound         404  no pool serves the model
    IdempotencyConflict   409  the same key with another body
    BatchOver             409  it has ended, and cannot be cancelled
    BodyTooLarge          413
    FileTooLarge          413
    BacklogFull           429  the shard accepts no more waiting tasks
    TenantFull            429  the tenant has as many tasks waiting as it may
    BatchFull             429  the tenant has as many tokens of batch work waiting as it may
    DeadlineTooShort      429  the task would not start by its deadline
    RateLimited           429  no more requests for a moment
      TokenRateLimited    429  no more tokens for a moment
    NoObjectStore         501  files are asked for, and the deployment has nowhere to put them
  BusError                Redis, translated at one boundary (shared/bus/connection.py)
    BusUnavailable        no connection, or no answer in time; nothing is known of the command
      NotConfirmed        written, but in fewer places than the durability in force asks for
    ConnectionLost        the connection broke with the command in flight; it may have run
    CommandRefused        Redis answered with an error
      WrongKeyType        a key holds another Redis type than it must
      MemoryFull          no room for new tasks; what waits and runs goes on
      ClusterRedirect     the key lives on another node of a cluster, where we do not follow
  StoreUnavailable        the object store cannot be reached, is full, or refuses us
  ObjectMissing           an object is not in its store
  IllegalTransition       a state that cannot follow
  ConfigError             every fault of the configuration at once
"""

import math
from collections.abc import Sequence

from msgspec import DecodeError, Struct

UNDECODABLE = (DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for what it cannot decode: no JSON, or another type; no UTF-8; nested some thousand deep."""


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


class TemplateNotFound(RequestError):
    code = "template_not_found"

    def __init__(self, name: str, near: Sequence[str], known: Sequence[str]) -> None:
        hint = f"did you mean {' or '.join(f'`{other}`' for other in near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"There is no template {name[:80]!r}; {hint}", param="template_id")


class TemplateFailed(RequestError):
    code = "template_failed"

    def __init__(self, name: str, why: str, *, param: str = "template_id") -> None:
        super().__init__(f"The template {name!r} cannot be filled in: {why.rstrip('.')}.", param=param)


class InvalidTaskId(RequestError):
    status, code = 404, "task_not_found"

    def __init__(self, task_id: str) -> None:
        super().__init__(f"{task_id[:80]!r} is not the id of a task.", param="id")


class TaskNotFound(RequestError):
    status, code = 404, "task_not_found"

    def __init__(self, task_id: str) -> None:
        super().__init__(f"The task {task_id} does not exist, or its result has expired.", param="id")


class ResponseNotFound(RequestError):
    status, code = 404, "response_not_found"

    def __init__(self, id: str, *, param: str = "response_id") -> None:
        super().__init__(f"There is no response {id[:120]!r}; it may have been deleted or expired.", param=param)


class NotEnded(RequestError):
    status, code = 409, "not_ended"

    def __init__(self, task_id: str, state: str) -> None:
        super().__init__(f"The task {task_id} is {state}: it has no result yet.", param="id")


class BatchNotFound(RequestError):
    status, code = 404, "batch_not_found"

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"There is no batch {batch_id[:80]!r}; it may have expired.", param="batch_id")


class BatchOver(RequestError):
    status, code = 409, "batch_over"

    def __init__(self, batch_id: str, status: str) -> None:
        super().__init__(f"The batch {batch_id} is {status} and cannot be cancelled any more.", param="batch_id")


class FileNotFound(RequestError):
    status, code = 404, "file_not_found"

    def __init__(self, file_id: str, *, param: str = "id") -> None:
        super().__init__(f"There is no file {file_id[:80]!r}; it may have been deleted or expired.", param=param)


class DeadLetterNotFound(RequestError):
    status, code = 404, "dead_letter_not_found"

    def __init__(self, letter: str) -> None:
        super().__init__(f"There is no dead letter {letter[:80]!r}; it may have been requeued or dropped.", param="id")


class BodyGone(RequestError):
    status, code = 410, "body_gone"

    def __init__(self, letter: str) -> None:
        super().__init__(
            f"The body of the dead letter {letter} was too large for Redis, and the object store has it no more. Drop the letter.",
            param="id",
        )


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


class FileTooLarge(RequestError):
    status, code = 413, "file_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The file is larger than {limit_bytes} bytes (limits.file_bytes).", param="file")


class BacklogFull(RequestError):
    status, code, type = 429, "backlog_full", "rate_limit_error"
    retry_after_s = 5

    def __init__(self, pool: str, lane: str, limit: int) -> None:
        super().__init__(
            f"The pool {pool} takes no more waiting tasks of the lane {lane} (limits.backlog is {limit}, of which normal may fill "
            "nine tenths, batch eight). Try again later."
        )


class TokensOverLimit(RequestError):
    code = "tokens_over_limit"

    def __init__(self, who: str, limit: int, tokens: int) -> None:
        super().__init__(
            f"{who} may use {limit} tokens in a minute (tokens_per_min), and this task {tokens}: it can never be accepted. "
            "Ask for less, with a smaller `max_tokens` or a shorter prompt.",
            param="max_tokens",
        )


class Unauthorized(RequestError):
    status, code = 401, "invalid_api_key"

    def __init__(self, *, sent: bool) -> None:
        why = "The API key is not known here" if sent else "There is no API key"
        super().__init__(
            f"{why}. Send one that the operator gave you: the header `Authorization: Bearer <key>`. "
            "Operators make keys with `headrace keys new`."
        )


class Forbidden(RequestError):
    status, code = 403, "tenant_not_yours"

    def __init__(self, tenant: str, own: str) -> None:
        super().__init__(
            f"The request names the tenant {tenant[:80]!r}, and you are {own!r}. Leave it out.", param="tenant"
        )


class ProducerUnknown(RequestError):
    status, code = 403, "producer_unknown"

    def __init__(self, producer: str) -> None:
        door = f"The producer {producer[:80]!r}" if producer else "This door"
        name = producer or "default"
        super().__init__(
            f"{door} belongs to no tenant. Write to the door of a producer that the configuration names, or have "
            f"`[producers.{name[:80]}] tenant = …` put into it."
        )


class RateLimited(RequestError):
    status, code, type = 429, "rate_limit_requests", "rate_limit_error"
    setting, what = "requests_per_s", "requests"

    def __init__(self, who: str, limit: float, most: int, used: int, length_s: float, wait_ms: int) -> None:
        """`limit`: as configured; `most` of them in any span of `length_s` seconds, of which `used` are taken."""
        self.wait_s = wait_ms / 1000
        self.retry_after_s = max(1, -(-wait_ms // 1000))
        self.most, self.used = most, used
        super().__init__(
            f"{who} has used {used} of {most} {self.what} in {length_s:.4g} s ({self.setting} = {limit:g}). "
            f"Try again in {self.retry_after_s} s."
        )


class TokenRateLimited(RateLimited):
    code = "rate_limit_tokens"
    setting, what = "tokens_per_min", "tokens"


class TenantFull(RequestError):
    status, code, type = 429, "tenant_queue_full", "rate_limit_error"
    retry_after_s = 5

    def __init__(self, tenant: str, limit: int) -> None:
        super().__init__(f"The tenant {tenant} has {limit} tasks waiting (tenants.{tenant}.queued). Try again later.")


class BatchFull(RequestError):
    status, code, type = 429, "batch_tokens_full", "rate_limit_error"
    retry_after_s = 60

    def __init__(self, tenant: str, limit: int) -> None:
        super().__init__(
            f"The tenant {tenant} may have {limit} tokens waiting in the lane batch (tenants.{tenant}.batch_tokens), and this "
            "task would be more. Try again when some of them have run."
        )


class DeadlineTooShort(RequestError):
    status, code, type = 429, "deadline_unmeetable", "rate_limit_error"

    def __init__(self, expires_in_s: float, wait_s: float) -> None:
        self.retry_after_s = max(1, math.ceil(wait_s - expires_in_s))
        super().__init__(
            f"`expires_in` is {expires_in_s:g} s, but the task would start in about {wait_s:.0f} s. Allow it more time, or try "
            "again later.",
            param="expires_in",
        )


class NoObjectStore(RequestError):
    status, code, type = 501, "no_object_store", "server_error"

    def __init__(self) -> None:
        super().__init__(
            "This deployment has no object store, which files and batches need. Its operator names one with the variable "
            "HEADRACE_OBJECTS: file:///folder or s3://bucket/prefix."
        )


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


class StoreUnavailable(HeadraceError):
    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"the object store {url} does not do what it is asked: {reason.rstrip('.')}")


class ObjectMissing(HeadraceError):
    def __init__(self, url: str, key: str) -> None:
        super().__init__(f"the object {key[:200]!r} is not in the store {url}")


class IllegalTransition(HeadraceError):
    def __init__(self, task_id: str, source: str, target: str, allowed: Sequence[str]) -> None:
        super().__init__(
            f"task {task_id} cannot go from {source} to {target}; allowed: {', '.join(allowed) or 'nothing'}"
        )


class ConfigError(HeadraceError):
    """The message lists every fault, one a line."""
