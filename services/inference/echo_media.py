"""What the echo engine answers without speaking: vectors, counts, tones. All follows from the words of the request alone.

embeddings        a vector of unit length, the sum of one for each word: texts that share words are near one another
tokenize          the ids of the words; count_tokens: how many there are
audio/speech      a WAV of one short tone for each word, as high as its id says
transcriptions    the name of the file and how many bytes it has
"""

import base64
import hashlib
import io
import math
import struct
import wave
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from services.inference.echo_body import Message, Part, text_of, token, words
from services.inference.engine import Answer, Call
from shared import forms
from shared.routes import COUNT_TOKENS, EMBEDDINGS, SPEECH, TOKENIZE, TRANSCRIPTIONS

DIMENSIONS, MOST_DIMENSIONS = 16, 1024
RATE, TONE_S = 8000, 0.05
"""Samples a second, and seconds of a tone: 800 bytes a word."""
_encode = msgspec.json.Encoder().encode


class Refused(Exception):
    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class Inputs(Struct):
    model: str | None = None
    input: str | list[str | int | list[int]] | None = None
    encoding_format: str = "float"
    dimensions: int | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    system: str | list[Part] | None = None
    tools: Any = None
    return_token_strs: bool | None = None
    response_format: str | None = None
    stream_format: str | None = None
    stream: bool | None = None

    @property
    def texts(self) -> list[str]:
        """Raises: Refused."""
        given = self.input
        if given is None or given == []:
            raise Refused("Field required: input", "input")
        if isinstance(given, str):
            return [given]
        several = [given] if isinstance(given[0], int) else given
        return [" ".join(map(str, one)) if isinstance(one, list) else str(one) for one in several]

    @property
    def prompts(self) -> list[str]:
        """Raises: Refused."""
        if self.prompt is None and not self.messages:
            raise Refused("Field required: prompt or messages", "prompt")
        return [self.prompt or "", text_of(self.system), *(text_of(message.content) for message in self.messages or ())]


Made = dict[str, Any] | bytes
"""JSON, or a WAV."""


def embeddings(asked: Inputs, model: str, longest: int) -> Made:
    size = asked.dimensions if asked.dimensions is not None else DIMENSIONS
    if not 1 <= size <= MOST_DIMENSIONS:
        raise Refused(f"dimensions is {size}; allowed: 1 to {MOST_DIMENSIONS}.", "dimensions")
    if asked.encoding_format not in ("float", "base64"):
        raise Refused(f"encoding_format is {asked.encoding_format!r}; allowed: float, base64.", "encoding_format")
    data = []
    for index, text in enumerate(asked.texts):
        made = vector(text, size)
        told: Any = (
            made if asked.encoding_format == "float" else base64.b64encode(struct.pack(f"<{size}f", *made)).decode()
        )
        data.append({"object": "embedding", "index": index, "embedding": told})
    tokens = sum(len(words(text)) for text in asked.texts)
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def vector(text: str, size: int) -> list[float]:
    """Of unit length; equal texts have equal ones, on every machine."""
    total = [0.0] * size
    for word in words(text) or [""]:
        drawn = hashlib.shake_128(word.strip().lower().encode()).digest(2 * size)
        for place, (number,) in enumerate(struct.iter_unpack("<h", drawn)):
            total[place] += (number + 0.5) / 32768
    length = math.sqrt(sum(value * value for value in total))
    return [value / length for value in total]


def tokenize(asked: Inputs, model: str, longest: int) -> Made:
    made = [word for text in asked.prompts for word in words(text)]
    strings = made if asked.return_token_strs else None
    return {
        "count": len(made),
        "max_model_len": longest,
        "tokens": [token(word) for word in made],
        "token_strs": strings,
    }


def count_tokens(asked: Inputs, model: str, longest: int) -> Made:
    if asked.tools:
        raise Refused("The echo engine does not support tools.", "tools")
    return {"input_tokens": sum(len(words(text)) for text in asked.prompts)}


def speech(asked: Inputs, model: str, longest: int) -> Made:
    if asked.response_format not in (None, "wav"):
        raise Refused(f"The echo engine makes wav; response_format is {asked.response_format!r}.", "response_format")
    if asked.stream_format not in (None, "audio"):
        raise Refused(f"The echo engine makes whole sounds; stream_format is {asked.stream_format!r}.", "stream_format")
    samples = bytearray()
    for word in words(asked.texts[0]):
        pitch = 2 * math.pi * (200 + token(word) % 800) / RATE
        samples += b"".join(
            struct.pack("<h", int(8000 * math.sin(pitch * moment))) for moment in range(int(RATE * TONE_S))
        )
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples)
    return made.getvalue()


def transcription(call: Call) -> Made:
    """Raises: Refused, InvalidRequest."""
    found = forms.parts(call.body, call.content_type)
    file = next((part for part in found if part.name == "file" and part.filename), None)
    if file is None:
        raise Refused("Field required: file", "file")
    for name, allowed in (("response_format", "json"), ("stream", "false")):
        said = forms.field(call.body, found, name) or allowed
        if said.lower() != allowed:
            raise Refused(f"The echo engine makes {name}={allowed}, not {said!r}.", name)
    return {"text": f"{file.filename} {file.end - file.start} bytes"}


Maker = Callable[[Inputs, str, int], Made]
MAKERS: dict[str, Maker] = {EMBEDDINGS: embeddings, TOKENIZE: tokenize, COUNT_TOKENS: count_tokens, SPEECH: speech}
_inputs = msgspec.json.Decoder(Inputs)


def make(call: Call, model: str, longest: int) -> Answer | None:
    """The answer, by a model of so long a context; None: another route. Raises: Refused, InvalidRequest, msgspec.DecodeError."""
    maker = MAKERS.get(call.route)
    if maker is not None:
        made = maker(_inputs.decode(call.body), model, longest)
    elif call.route == TRANSCRIPTIONS:
        made = transcription(call)
    else:
        return None
    if isinstance(made, bytes):
        return Answer(status=200, body=made, content_type="audio/wav")
    return Answer(status=200, body=_encode(made))
