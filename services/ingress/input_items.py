"""The input of a response as the Responses API lists it: items that each have an id and a type, in pages.

What a client sends may leave out both, and may say the text of a message as a string; what it is given back has neither short
form. An id follows from the place of its item in the request, so it is the same on every page and on every replica.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw
from starlette.types import Scope

from services.ingress.http import query
from services.ingress.tasks import page_limit
from shared.errors import UNDECODABLE, InvalidRequest

ORDERS = ("asc", "desc")
MESSAGE = "message"

_item = msgspec.json.Decoder(dict[str, Any])


def page_of(items: Sequence[Raw], task_id: str, scope: Scope) -> dict[str, Any]:
    """Raises: InvalidRequest."""
    asked = query(scope, {"limit": "20", "order": "desc", "after": ""})
    limit = page_limit(asked["limit"])
    if asked["order"] not in ORDERS:
        raise InvalidRequest(f"`order` is {asked['order'][:40]!r}; allowed: {', '.join(ORDERS)}", param="order")
    shown = whole(items, task_id)
    if asked["order"] == "desc":
        shown.reverse()
    rest = shown[_place_behind(shown, asked["after"]) :]
    page = rest[:limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return {"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": len(rest) > limit}


def whole(items: Sequence[Raw], task_id: str) -> list[dict[str, Any]]:
    """Each item with an id of its own, a type, and the text of a message as a part. Raises: InvalidRequest."""
    shown: list[dict[str, Any]] = []
    taken: set[str] = set()
    for number, raw in enumerate(items):
        try:
            item = _item.decode(raw)
        except UNDECODABLE:
            raise InvalidRequest(f"Item {number + 1} of the input is no object in UTF-8.", param="input") from None
        kind = item.setdefault("type", MESSAGE)
        if not isinstance(item.get("id"), str) or item["id"] in taken:
            item["id"] = f"{'msg' if kind == MESSAGE else 'item'}_{task_id}_{number}"
        taken.add(item["id"])
        if kind == MESSAGE and isinstance(item.get("content"), str):
            item["content"] = [_part(item.get("role"), item["content"])]
        shown.append(item)
    return shown


def _part(role: object, text: str) -> dict[str, Any]:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": []}
    return {"type": "input_text", "text": text}


def _place_behind(shown: Sequence[dict[str, Any]], after: str) -> int:
    """Raises: InvalidRequest."""
    if not after:
        return 0
    for place, item in enumerate(shown, 1):
        if item["id"] == after:
            return place
    raise InvalidRequest(f"`after` is {after[:80]!r}: the response has no such input item.", param="after")
