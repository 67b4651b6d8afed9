"""A task as GET /v1/tasks/ID tells it, read for a person."""

from typing import Any

import msgspec

from shared.chunks import first_text
from shared.lifecycle import State
from shared.messages import JSON

View = dict[str, Any]


def has_ended(view: View) -> bool:
    return State(view["status"]).terminal


def counts_as_failed(status: str) -> bool:
    """Also of a task that was refused."""
    return status not in ("pending", "processing", "completed")


def is_elsewhere(view: View) -> bool:
    """The result is JSON, and too large to stand in the task: it is fetched at its own address."""
    result, url = view.get("result"), f"/v1/tasks/{view['id']}/result"
    return isinstance(result, dict) and result.get("url") == url and result.get("content_type") == JSON


def text_of(view: View) -> str:
    """The answer's text, or why there is none."""
    if error := view.get("error"):
        return str(error["message"])
    if result := view.get("result"):
        return first_text(msgspec.json.encode(result)) or ""
    return ""


def to_json(view: View) -> str:
    return msgspec.json.encode(view).decode()
