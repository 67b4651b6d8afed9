"""The routes of engines that a task may ask for, and how each is asked and answers."""

from enum import StrEnum

from msgspec import Struct

CHAT, CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions"
RESPONSES, MESSAGES, COUNT_TOKENS = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
EMBEDDINGS, TOKENIZE = "/v1/embeddings", "/tokenize"
SPEECH, TRANSCRIPTIONS = "/v1/audio/speech", "/v1/audio/transcriptions"
INVOCATIONS = "/invocations"


class Shape(StrEnum):
    """What the chunks of a streamed answer add up to."""

    CHOICES = "choices"
    """`choices`, each joined from its deltas."""
    RESPONSE = "response"
    """The `response` that the last event holds."""
    MESSAGE = "message"
    """A message, joined from its content blocks."""
    LAST = "last"
    """The last event is the whole."""


class Route(Struct, frozen=True):
    path: str
    shape: Shape = Shape.CHOICES
    named: bool = False
    """Frames of a stream have an `event:` line; the name is the `type` in their JSON."""
    done: bool = False
    """A stream ends with `data: [DONE]`."""
    whole: bool = False
    """It has no streams: engines answer whole, whatever `stream` in the body says."""
    form: bool = False
    """The body may be multipart/form-data."""
    json: bool = True
    """The body may be JSON, so it can be a line of a batch."""
    speaks: bool = False
    """It makes tokens from a prompt. The others make none, and their input is weighed as a whole."""
    typed_errors: bool = False
    """Errors bear `"type": "error"` beside `error`, as clients of Anthropic's API expect."""


_ALL = (
    Route(CHAT, done=True, speaks=True),
    Route(CHATS, whole=True, speaks=True),
    Route(COMPLETIONS, done=True, speaks=True),
    Route(RESPONSES, Shape.RESPONSE, named=True, speaks=True),
    Route(MESSAGES, Shape.MESSAGE, named=True, speaks=True, typed_errors=True),
    Route(COUNT_TOKENS, whole=True, typed_errors=True),
    Route(EMBEDDINGS, whole=True),
    Route("/v2/embed", whole=True),
    Route("/pooling", whole=True),
    Route("/classify", whole=True),
    Route("/score", whole=True),
    Route("/v1/score", whole=True),
    Route("/rerank", whole=True),
    Route("/v1/rerank", whole=True),
    Route("/v2/rerank", whole=True),
    Route("/generative_scoring", whole=True),
    Route("/v1/systemone", whole=True),
    Route("/v1/moderations", whole=True),
    Route(TOKENIZE, whole=True),
    Route("/detokenize", whole=True),
    Route(TRANSCRIPTIONS, done=True, form=True, json=False),
    Route("/v1/audio/translations", done=True, form=True, json=False),
    Route(SPEECH, Shape.LAST),
    Route("/v1/images/generations", Shape.LAST, named=True),
    Route("/v1/images/edits", Shape.LAST, named=True, form=True),
    Route(INVOCATIONS, done=True),
)
ROUTES = {route.path: route for route in _ALL}


def other_than_json(content_type: str) -> str:
    """The content type of a body that is not JSON; empty for JSON, and where nothing is said."""
    return "" if content_type.partition(";")[0].strip().lower() in ("", "application/json") else content_type
