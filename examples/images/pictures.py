"""Pictures as they are sent, opened with care: what claims to be one may be anything."""

import base64
import binascii
import io
import warnings
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

KINDS = ("JPEG", "PNG", "WEBP")
MOST_PIXELS = 24_000_000
"""Of a picture, before it is unpacked: a file of 50 kB can hold more pixels than there is memory for."""
URL_CHARS = 80
"""Of what was sent, in the words of an error."""


def each(bodies: list[Any], answered: Callable[[Any], Any]) -> list[Any]:
    """An error in place of one result is the answer to that one; the others of the batch go on."""
    results: list[Any] = []
    for body in bodies:
        try:
            results.append(answered(body))
        except ValueError as error:
            results.append(error)
    return results


def picture(given: Any) -> Image.Image:
    """Upright, as RGB, on white where it was transparent. `given`: a file, or a data URL. Raises: ValueError."""
    data = given.data if hasattr(given, "data") else from_url(given)
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            image = Image.open(io.BytesIO(data), formats=KINDS)
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            upright = ImageOps.exif_transpose(image)
            upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"the image has more than {MOST_PIXELS} pixels: send a smaller one") from None
    except UnidentifiedImageError:  # its words are where the data lay in memory
        raise ValueError(f"the image cannot be read as {', '.join(KINDS)}") from None
    except MemoryError:  # is ours
        raise
    except Exception as error:  # noqa: BLE001  of a broken file Pillow's decoders raise what they like
        raise ValueError(f"the image cannot be read as {', '.join(KINDS)}: {error}") from None
    if upright.mode == "RGB":
        return upright
    white = Image.new("RGBA", upright.size, "white")
    return Image.alpha_composite(white, upright).convert("RGB")


def from_url(given: Any) -> bytes:
    """Raises: ValueError."""
    head, comma, data = given.partition(",") if isinstance(given, str) else ("", "", "")
    if not (comma and head.startswith("data:image/") and head.endswith(";base64")):
        raise ValueError(
            f"the image is {str(given)[:URL_CHARS]!r}: expected a file of a form, the id of a file, or data:image/png;base64,…"
        )
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the image is a data URL with base64 that is none: {error}") from None
