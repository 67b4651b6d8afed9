"""Says what is wrong with a picture before a person sees it: measures of light, sharpness and colour, and no neural network.

Each check gives a score from 0 to 1 and is true from its threshold on. `skin` tells how much of the picture has the colour of
human skin. It does not know what it sees: sand and wood score too, and so does a portrait. It is good for choosing what a
person looks at first, and for nothing else. README.md says what each score means.
"""

import hashlib
from typing import Any

import numpy as np
from pictures import each, picture
from PIL import Image

FIELDS = ("model", "input")
MOST_IMAGES = 10
"""Of a request: it runs beside others, and one of 24 million pixels takes a second."""
SIDE = 512
"""Pixels of the longest side that is measured: sharpness means the same for every picture then."""
LEAST_SIDE = 200
SHARP = 100.0
"""Variance of the Laplacian of a picture that is just sharp enough."""
THRESHOLDS = {"blank": 0.98, "blurred": 0.5, "too_dark": 0.8, "too_bright": 0.9, "too_small": 0.5, "skin": 0.4}


def moderate(bodies: list[Any]) -> list[Any]:
    return each(bodies, answered)


def answered(body: dict[str, Any]) -> dict[str, Any]:
    """As the moderations of the OpenAI API are answered, a result for each image. Raises: ValueError."""
    if unknown := sorted(body.keys() - set(FIELDS)):
        raise ValueError(f"unknown fields: {', '.join(unknown)}; known: {', '.join(FIELDS)}")
    results = [judged(picture(given)) for given in images_of(body.get("input"))]
    digest = hashlib.sha256(repr(results).encode()).hexdigest()
    return {"id": f"modr-{digest[:32]}", "model": body.get("model"), "results": results}


def images_of(given: Any) -> list[Any]:
    """`input` is an image, or a list of images or of parts as the API has them. Raises: ValueError."""
    images = []
    for part in given if isinstance(given, list) else [given]:
        if isinstance(part, dict):
            if part.get("type") != "image_url" or not isinstance(part.get("image_url"), dict):
                raise ValueError(f"a part of input has the type {part.get('type')!r}; only image_url is looked at")
            part = part["image_url"].get("url")
        images.append(part)
    if not 1 <= len(images) <= MOST_IMAGES:
        raise ValueError(f"input holds {len(images)} images; 1 to {MOST_IMAGES} are looked at")
    return images


def judged(image: Image.Image) -> dict[str, Any]:
    scores = scores_of(image)
    said = {name: bool(scores[name] >= threshold) for name, threshold in THRESHOLDS.items()}
    return {
        "flagged": any(said.values()),
        "categories": said,
        "category_scores": {name: round(score, 4) for name, score in scores.items()},
        "category_applied_input_types": {name: ["image"] for name in said},
    }


def scores_of(image: Image.Image) -> dict[str, float]:
    short = min(image.size)
    image.thumbnail((SIDE, SIDE))
    grey = np.asarray(image.convert("L"), np.float32)
    return {
        "blank": float(np.mean(np.abs(grey - np.median(grey)) <= 3)),
        "blurred": blurred(grey),
        "too_dark": float(np.mean(grey < 25)),
        "too_bright": float(np.mean(grey > 230)),
        "too_small": max(0.0, 1 - short / (2 * LEAST_SIDE)),
        "skin": skin(image),
    }


def blurred(grey: "np.ndarray[Any, Any]") -> float:
    """Half where the variance of the Laplacian is SHARP, less where it is more."""
    if min(grey.shape) < 3:
        return 1.0
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(1 / (1 + np.var(around - 4 * grey[1:-1, 1:-1]) / SHARP))


def skin(image: Image.Image) -> float:
    """Share of the pixels within the range of chrominance that skin of every tone has (Chai and Ngan, 1999)."""
    ycc = np.asarray(image.convert("YCbCr"))
    blue, red = ycc[..., 1], ycc[..., 2]
    return float(np.mean((blue >= 77) & (blue <= 127) & (red >= 133) & (red <= 173)))
