"""The templates that tasks may name, and what each needs to be filled in."""

from typing import Any

from starlette.types import Receive, Scope, Send

from services.ingress.auth import Auth
from services.ingress.http import Endpoint, respond
from shared import templates
from shared.config import Config
from shared.messages import encode
from shared.policy import Message, Template

PLAIN = Template(
    messages=[Message(role="user", content="{{ input_text }}")], description="The text is the user's message."
)
"""What the built-in template amounts to."""


def listing(config: Config, auth: Auth) -> Endpoint:
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        auth.payer(scope)
        policy = config.policy
        views = [view(name, policy.templates.get(name, PLAIN)) for name in templates.known(policy)]
        await respond(send, 200, encode({"object": "list", "data": views}))

    return Endpoint("/v1/templates", handle)


def view(name: str, template: Template) -> dict[str, Any]:
    return {
        "id": name,
        "object": "template",
        "description": template.description,
        "model": template.model,
        "variables": templates.variables(template),
        "messages": template.messages,
        "options": template.options,
    }
