"""Where Headrace's answer is another than that of vLLM's own server, and why it may be. docs/conformance.md tells the same."""

from msgspec import Struct

from shared.routes import CHAT, COMPLETIONS, COUNT_TOKENS, EMBEDDINGS, MESSAGES, RESPONSES, TOKENIZE


class Refused(Struct, frozen=True):
    """An error as clients read it; the words of its message are free."""

    status: int
    type: str | None
    code: str | int | None = None
    param: str | None = None


class Difference(Struct, frozen=True):
    """How each answers: an error, or whatever has this status."""

    reason: str
    headrace: Refused | int
    vllm: Refused | int


NAMES = (
    "Headrace knows the models of all pools and refuses other names itself: the message lists those that are served, and "
    "`code` is the word of OpenAI's API."
)
READS = (
    "Headrace reads `model` and `stream`, so what is wrong with them, or with the JSON around them, is told before an engine "
    "is asked, in the shape of OpenAI's API."
)
BOOLEAN = "vLLM takes several words for true. `stream` is a boolean, as in OpenAI's API."
ONE_MODEL = "A server of vLLM has one model, which a call need not name. Where Headrace has several pools, it must."
KIND = "Headrace asks JSON for no content type; only forms need theirs."
SHAPE = "Headrace's own refusals always have the shape of OpenAI's API."
EARLY = "An error before the first chunk is the whole answer, with its status, also where a stream was asked for."
KEPT = "Headrace keeps responses itself, in the background too; vLLM only in memory, and only if it is told to."
MODELS = (
    "Headrace lists what all pools serve, aliases and adapters included, each with what OpenAI's API tells of a model."
)
ONE = "OpenAI's API has this call, vLLM's server has not."
PROBES = "This tells of one process; those of a deployment are asked at `/healthz`, `/readyz` and `/metrics` of each."


SET = "The message lists the tasks of a model in an order that vLLM draws at each start."


def _unknown_model(
    type_: str = "NotFoundError", code: int | None = 404, param: str | None = "model", ours: str = "NotFoundError"
) -> Difference:
    return Difference(NAMES, Refused(404, ours, "model_not_found", "model"), Refused(404, type_, code, param))


def _misread(param: str | None = None, theirs: Refused | int = 400, reason: str = READS) -> Difference:
    return Difference(reason, Refused(400, "invalid_request_error", "invalid_request", param), theirs)


def _wrong(param: str) -> Refused:
    """vLLM's words for a body that does not fit its schema."""
    return Refused(400, "Bad Request", 400, param)


def _unknown_route(status: int, *, vllm: int = 0, reason: str = SHAPE) -> Difference:
    return Difference(reason, Refused(status, "invalid_request_error", "unknown_route"), vllm or status)


_NO_TASK = Refused(400, "BadRequestError", 400, "task")
_NO_RESPONSE = Difference(
    KEPT,
    Refused(404, "invalid_request_error", "response_not_found", "response_id"),
    Refused(404, "invalid_request_error", 404, "response_id"),
)

DIFFERENCES: dict[str, Difference] = {
    f"{CHAT} unknown model": _unknown_model(),
    f"{CHAT} unknown model, streamed": _unknown_model(),
    f"{COMPLETIONS} unknown model": _unknown_model(),
    f"{RESPONSES} unknown model": _unknown_model(),
    f"{MESSAGES} unknown model": _unknown_model(code=None, param=None),
    f"{COUNT_TOKENS} unknown model": _unknown_model(code=None, param=None),
    f"{TOKENIZE} unknown model": _unknown_model(),
    f"{EMBEDDINGS} unknown model": _unknown_model(param=None),
    f"{CHAT} model not a string": _misread("model", _wrong("body.model")),
    f"{CHAT} model null": _misread("model", 200, ONE_MODEL),
    f"{CHAT} no model": _misread("model", 200, ONE_MODEL),
    f"{CHAT} stream in words": _misread("stream", 200, BOOLEAN),
    f"{CHAT} broken JSON": _misread(None, _wrong("body.28")),
    f"{RESPONSES} broken JSON": _misread(None, _wrong("body.1")),
    f"{MESSAGES} broken JSON": _misread(None, _wrong("body.1")),
    f"{CHAT} no body": _misread(None, _wrong("body")),
    f"{CHAT} not an object": _misread(None, _wrong("body")),
    f"{CHAT} null": _misread(None, _wrong("body")),
    f"{CHAT} not UTF-8": _misread(),
    f"{CHAT} nested too deep": _misread(),
    f"{CHAT} NaN": _misread(None, Refused(400, "BadRequestError", 400, "temperature")),
    f"{CHAT} form": _misread(None, Refused(400, "Bad Request", 400)),
    f"{CHAT} plain text": Difference(KIND, 200, Refused(400, "Bad Request", 400)),
    f"{CHAT} no content type": Difference(KIND, 200, Refused(400, "Bad Request", 400)),
    f"{CHAT} regex that is none, streamed": Difference(EARLY, Refused(400, "BadRequestError", 400), 200),
    f"{RESPONSES} background": Difference(KEPT, 200, Refused(400, "invalid_request_error", 400, "background")),
    "/pooling task of another model": Difference(SET, _NO_TASK, _NO_TASK),
    "GET /v1/responses/resp_none": _NO_RESPONSE,
    "POST /v1/responses/resp_none/cancel": _NO_RESPONSE,
    f"GET {CHAT}": _unknown_route(405),
    f"PUT {CHAT}": _unknown_route(405),
    "POST /v1/models": _unknown_route(405),
    "GET /no/such/route": _unknown_route(404),
    "GET /v1/models": Difference(MODELS, 200, 200),
    "GET /v1/models/smollm2-135m-instruct": Difference(ONE, 200, 404),
    "GET /v1/models/no-such-model": Difference(ONE, Refused(404, "NotFoundError", "model_not_found", "model"), 404),
    "GET /health": _unknown_route(404, vllm=200, reason=PROBES),
    "GET /version": _unknown_route(404, vllm=200, reason=PROBES),
    "GET /ping": _unknown_route(404, vllm=200, reason=PROBES),
    "POST /ping": _unknown_route(404, vllm=200, reason=PROBES),
    "GET /load": _unknown_route(404, vllm=200, reason=PROBES),
}
"""By the name of the call."""

OF_ONE_PROCESS = {
    "/health",
    "/ping",
    "/load",
    "/metrics",
    "/version",
    "/kv_event_sources",
    "/is_scaling_elastic_ep",
    "/scale_elastic_ep",
}
"""Paths of vLLM's server that ask for no inference: an engine behind streams has no one address where they would mean anything."""
