"""Makes pictures look better, by measures that are decades old: colours balanced, noise and haze away, edges clear.

Called with a batch, one picture after the other: Pillow and NumPy use a core each. More of them: more `processes`.
"""

import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pictures import each, picture
from PIL import Image, ImageFilter, ImageOps

FIELDS = ("model", "image", "images", "prompt", "size", "output_format", "answer")
FORMATS = ("png", "jpeg", "webp")
ANSWERS = ("b64_json", "file")
LONGEST_SIDE = 2048
"""Pixels. Everything takes time by the pixel, so larger ones are scaled down first."""
NOISY = 3.0
"""Levels of 255, as a standard deviation: less than that is grain, and smoothing costs more than it gains."""
MOST_GAIN = 1.6
"""Of a colour in the balance: a picture of a lawn is green, and should stay so."""


def beautify(bodies: list[Any]) -> list[Any]:
    return each(bodies, answered)


def answered(body: dict[str, Any]) -> Any:
    """Raises: ValueError."""
    if unknown := sorted(body.keys() - set(FIELDS)):
        raise ValueError(f"unknown fields: {', '.join(unknown)}; known: {', '.join(FIELDS)}")
    kind, answer = _one_of(body, "output_format", FORMATS), _one_of(body, "answer", ANSWERS)
    steps, side = steps_of(body.get("prompt", "beautify")), side_of(body.get("size", "auto"))
    given = image_of(body)
    made = picture(given)
    made.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
    for step in steps:
        made = step(made)
    data = encoded(made, kind)
    if answer == "file":
        return data, f"image/{kind}", f"{Path(getattr(given, 'filename', 'image')).stem[:200]}-beautiful.{kind}"
    created = int(datetime.now(UTC).timestamp())
    return {"created": created, "data": [{"b64_json": data}], "output_format": kind}


def image_of(body: dict[str, Any]) -> Any:
    """As a form has it, or the JSON of the API: `image`, or `images: [{"file_id": …}]`. Raises: ValueError."""
    if "image" in body and "images" in body:
        raise ValueError("there are image and images; send one of them")
    given = body.get("image", body.get("images", []))
    images = given if isinstance(given, list) else [given]
    if len(images) != 1:
        raise ValueError(f"there are {len(images)} images; one is made beautiful at a time")
    image = images[0]
    return image.get("file_id", image.get("image_url")) if isinstance(image, dict) else image


def _one_of(body: dict[str, Any], field: str, allowed: tuple[str, ...]) -> str:
    value = body.get(field, allowed[0])
    if value not in allowed:
        raise ValueError(f"{field} is {value!r}; allowed: {', '.join(allowed)}")
    return str(value)


def side_of(size: Any) -> int:
    """`auto`, or the longest side in pixels: `1024`, `1024x1024`."""
    first, _, second = str(size).partition("x")
    if size == "auto":
        return LONGEST_SIDE
    if not (first.isdecimal() and 16 <= int(first) <= LONGEST_SIDE and second in ("", first)):
        raise ValueError(f"size is {size!r}; allowed: auto, or one length of 16 to {LONGEST_SIDE} pixels: 1024x1024")
    return int(first)


def steps_of(prompt: Any) -> list[Callable[[Image.Image], Image.Image]]:
    """All, or those that it names, in the order that does them good."""
    words = str(prompt).lower().replace(",", " ").split()
    wrong = [word for word in words if word != "beautify" and word not in STEPS]
    if wrong or not words:
        raise ValueError(f"prompt is {prompt!r}; it knows the words beautify, {', '.join(STEPS)}")
    return [step for name, step in STEPS.items() if name in words or "beautify" in words]


# -- the steps


def balance(image: Image.Image) -> Image.Image:
    """The light becomes white: bright pixels count most for what its colour was (shades of grey, Finlayson and Trezzi)."""
    pixels = np.asarray(image, np.float32)
    light = np.power(np.mean(np.power(pixels / 255, 6), axis=(0, 1)), 1 / 6)
    gain = np.clip(light.mean() / np.maximum(light, 1e-3), 1 / MOST_GAIN, MOST_GAIN)
    return Image.fromarray(np.clip(pixels * gain, 0, 255).astype(np.uint8))


def denoise(image: Image.Image) -> Image.Image:
    """A median of nine, where there is noise: it keeps edges. Twice where there is much."""
    for _ in range(2):
        if noise_of(image) < NOISY:
            break
        image = image.filter(ImageFilter.MedianFilter(3))
    return image


def contrast(image: Image.Image) -> Image.Image:
    """From black to white, but for half a percent at each end."""
    return ImageOps.autocontrast(image, cutoff=0.5, preserve_tone=True)


def sharpen(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.UnsharpMask(radius=1.5, percent=80, threshold=4))


STEPS = {"balance": balance, "denoise": denoise, "contrast": contrast, "sharpen": sharpen}


def noise_of(image: Image.Image) -> float:
    """Standard deviation of the noise, in levels of 255: of what neither a plane nor an edge explains (after Immerkær)."""
    grey = np.asarray(image.convert("L"), np.float32)
    if min(grey.shape) < 3:
        return 0.0
    across = grey[:, :-2] - 2 * grey[:, 1:-1] + grey[:, 2:]
    left = across[:-2] - 2 * across[1:-1] + across[2:]
    return float(np.median(np.abs(left)) * 1.4826 / 6)


def encoded(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind.upper(), **({} if kind == "png" else {"quality": 90}))
    return out.getvalue()
