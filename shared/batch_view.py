"""A batch as clients see it: at `GET /v1/batches/{id}`, and in the webhook that tells of its end."""

from msgspec import Raw, Struct

from shared.batches import Batch, End, Fault, Status, file_id_of
from shared.messages import NULL


class Counts(Struct):
    total: int
    completed: int
    failed: int
    cancelled: int
    expired: int


class Errors(Struct, tag_field="object", tag="list"):
    data: list[Fault]


class Usage(Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens_details: dict[str, int]


class BatchView(Struct, kw_only=True, tag_field="object", tag="batch"):
    """Times are Unix seconds."""

    id: str
    endpoint: str
    model: str | None
    errors: Errors | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    """Both can be read while the batch runs; none: there is nothing in it yet."""
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: Counts
    usage: Usage
    metadata: Raw = NULL


def view(batch: Batch) -> BatchView:
    at = {status: at_ms // 1000 or None for status, at_ms in batch.at_ms.items()}
    used = batch.tokens_in, batch.tokens_out
    return BatchView(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.model or None,
        errors=Errors(batch.faults) if batch.faults else None,
        input_file_id=batch.input_file_id,
        completion_window=batch.window,
        status=batch.status,
        output_file_id=file_id_of(batch.id, "output") if batch.output_lines else None,
        error_file_id=file_id_of(batch.id, "errors") if batch.error_lines else None,
        created_at=batch.created_at_ms // 1000,
        in_progress_at=at[Status.IN_PROGRESS],
        expires_at=batch.expires_at_ms // 1000,
        finalizing_at=at[Status.FINALIZING],
        completed_at=at[Status.COMPLETED],
        failed_at=at[Status.FAILED],
        expired_at=at[Status.EXPIRED],
        cancelling_at=at[Status.CANCELLING],
        cancelled_at=at[Status.CANCELLED],
        request_counts=Counts(batch.total, *(batch.ended[end] for end in End)),
        usage=Usage(*used, sum(used), {"cached_tokens": 0}, {"reasoning_tokens": 0}),
        metadata=batch.metadata,
    )
