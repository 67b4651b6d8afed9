"""The names that clients may call a model: those that pools serve, and aliases with what they stand for."""

from typing import Any

from starlette.types import Receive, Scope, Send

from services.ingress.auth import Auth
from services.ingress.http import Endpoint, respond
from shared.clock import now_ms
from shared.config import Config
from shared.errors import ModelNotFound
from shared.messages import encode
from shared.policy import Alias
from shared.routing import names, title


def listing(config: Config, auth: Auth) -> Endpoint:
    created_s = now_ms() // 1000

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        auth.payer(scope)
        policy = config.policy
        views = [view(config, name, created_s) for name in names(policy, config.pools)]
        await respond(send, 200, encode({"object": "list", "data": views}))

    return Endpoint("/v1/models", handle)


def showing(config: Config, auth: Auth) -> Endpoint:
    created_s = now_ms() // 1000

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        auth.payer(scope)
        policy, name = config.policy, scope["path_params"]["name"]
        known = list(names(policy, config.pools))
        if name not in known:
            raise ModelNotFound(name, known)
        await respond(send, 200, encode(view(config, name, created_s)))

    return Endpoint("/v1/models/{name}", handle)


def view(config: Config, name: str, created_s: int) -> dict[str, Any]:
    """As the OpenAI API shows a model; of an adapter also its model, of an alias what it routes to. Its shadow is nobody's business."""
    shown = {"id": name, "object": "model", "created": created_s, "owned_by": "headrace", "root": name}
    if alias := config.policy.aliases.get(name):
        return shown | _routes(alias)
    parent = next((pool.model for pool in config.pools.values() if name in pool.adapters), None)
    return shown if parent is None else shown | {"parent": parent}


def _routes(alias: Alias) -> dict[str, Any]:
    whole = sum(target.weight for target in alias.targets)
    targets = [
        {"model": target.model, "variant": title(target), "share": round(target.weight / whole, 6)}
        for target in alias.targets
    ]
    return {"targets": targets, "fallbacks": alias.fallbacks}
