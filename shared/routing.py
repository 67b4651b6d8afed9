"""Where a request goes: the model behind the name that a client used, and who else may get it. Pure.

An alias spreads users over its targets by weighted rendezvous hashing (Thaler and Ravishankar 1998; with weights, Schindelhauer
and Schomaker, "Weighted Distributed Hash Tables", SPAA 2005): each target draws a number from the user's name, its own name and
its weight, and the highest one wins. No table is kept, so every replica of every door agrees. A target whose weight changes
draws higher or lower, and the others as before: users move only to it or only away from it, as few as the shares allow.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b

from msgspec import Struct

from shared.config import Pool
from shared.errors import ModelNotFound
from shared.ids import new_nonce
from shared.policy import Alias, Policy, Target


class Branch(Struct, frozen=True):
    """One way that a request may take."""

    model: str
    variant: str
    """What answers call it; empty: the client named the model itself."""
    pool: str


class Casting(Struct, frozen=True):
    """A copy of a request, whose answer nobody gets."""

    model: str
    pool: str
    tenant: str


class Choice(Struct, frozen=True):
    model: str
    variant: str
    pool: str
    fallbacks: tuple[Branch, ...] = ()
    """In turn, should the pool accept nothing more."""
    shadow: Casting | None = None


def choose(policy: Policy, pools: Mapping[str, Pool], name: str, sticky: str) -> Choice:
    """What `name`, an alias or a model, means for a user. An empty `sticky` is a user who was never seen before.

    An alias goes before a model of the same name, so that traffic of a model can be split without a change of its clients.
    Raises: ModelNotFound.
    """
    alias = policy.aliases.get(name)
    if alias is None:
        return Choice(name, "", pool_of(policy, pools, name))
    who = sticky or new_nonce()
    target = draw(alias.targets, name, who)
    fallbacks = tuple(
        Branch(model, variant_of(alias, model), pool_of(policy, pools, model))
        for model in dict.fromkeys(alias.fallbacks)
        if model != target.model
    )
    shadow = None
    if alias.shadow is not None and uniform(name, "shadow", who) < alias.shadow.share:
        shadow = Casting(alias.shadow.model, pool_of(policy, pools, alias.shadow.model), alias.shadow.tenant)
    return Choice(target.model, title(target), pool_of(policy, pools, target.model), fallbacks, shadow)


def draw(targets: Sequence[Target], name: str, who: str) -> Target:
    """The target of a user: `name` tells one alias from another, so that the groups of two trials do not coincide."""
    return max(targets, key=lambda target: target.weight / -math.log(uniform(name, title(target), who)))


def uniform(*parts: str) -> float:
    """A number that follows from the parts, evenly spread between 0 and 1, without both."""
    digest = blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=8).digest()
    return ((int.from_bytes(digest) >> 12) + 0.5) / (
        1 << 52
    )  # one bit fewer than a float holds, so that 1 is never reached


def title(target: Target) -> str:
    return target.variant or target.model


def variant_of(alias: Alias, model: str) -> str:
    """What answers of a model are called that was not drawn: as the target is, if it is one."""
    return next((title(target) for target in alias.targets if target.model == model), model)


def pool_of(policy: Policy, pools: Mapping[str, Pool], model: str) -> str:
    """Raises: ModelNotFound, with every name that a client may use."""
    for name, pool in pools.items():
        if model in pool.models:
            return name
    raise ModelNotFound(model, list(names(policy, pools)))


def names(policy: Policy, pools: Mapping[str, Pool]) -> Iterator[str]:
    """What clients may call a model: the models, then the aliases, each once."""
    yield from dict.fromkeys((*(model for pool in pools.values() for model in pool.models), *policy.aliases))
