"""Who asks over HTTP, as its headers say.

Where keys are required every request sends one; where they are not, one that is sent must be known all the same, unless there
are none at all: clients of the OpenAI API always send something. Without a key, `x-headrace-tenant` says who asks, unproved.
"""

from starlette.types import Scope

from services.ingress.http import header
from shared.config import Config
from shared.errors import Forbidden
from shared.payer import ANONYMOUS, Payer, check_door, digest_of, is_loopback, keys_required, of_key
from shared.policy import Policy
from shared.request import check_name

TENANT_HEADER = "x-headrace-tenant"


class Auth:
    def __init__(self, config: Config, host: str) -> None:
        """`host`: the address of the door. Raises: ConfigError if keys are required there, and there are none."""
        check_door(config.policy, host)
        self._config, self._loopback = config, is_loopback(host)
        self._policy = config.policy
        self._known: dict[str, Payer] = {}
        """Keys that were sent and fitted, by digest: a look at every key of a large file costs a millisecond."""

    def payer(self, scope: Scope) -> Payer:
        """Raises: Unauthorized, Forbidden, InvalidRequest."""
        policy = self._config.policy
        presented = presented_key(scope)
        payer = ANONYMOUS
        if (presented and policy.keys) or keys_required(policy, loopback=self._loopback):
            payer = self._of_key(policy, presented)
        said = check_name(TENANT_HEADER, header(scope, TENANT_HEADER.encode()))
        if said and payer.named and said != payer.tenant:
            raise Forbidden(said, payer.tenant)
        return Payer(tenant=said) if said and not payer.named else payer

    def _of_key(self, policy: Policy, presented: str) -> Payer:
        if policy is not self._policy:
            self._policy, self._known = policy, {}
        digest = digest_of(presented)
        payer = self._known.get(digest)
        if payer is None:
            payer = self._known[digest] = of_key(policy, presented)
        return payer


def presented_key(scope: Scope) -> str:
    """Of `Authorization: Bearer`, else of `x-api-key`; empty: none."""
    scheme, _, key = header(scope, b"authorization").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else header(scope, b"x-api-key")


def may_see(payer: Payer, tenant: str) -> bool:
    """What belongs to others does not exist for whoever has proved who it is."""
    return not payer.named or payer.tenant == tenant
