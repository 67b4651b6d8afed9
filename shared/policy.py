"""What may change while everything runs: who may ask for what, at what weight, and where it goes.

All of it is read from headrace.toml beside what needs a restart (shared/config.py), and replaced as a whole when the file
changes (shared/reload.py). Nobody keeps a part of it: whoever needs it asks `config.policy`, each time.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from shared.lifecycle import Lane

Share = Annotated[float, Meta(gt=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=10**12)]
"""0: no limit."""

EVERYBODY = "*"
"""[tenants."*"]: tenants that the file does not name."""


class LaneRule(Struct, frozen=True, kw_only=True):
    """A priority class. A lane gets what the others leave; while others wait too, its share of the tokens."""

    share: Share
    """Relative to the shares of the other lanes that wait."""
    slots: Share = 1.0
    """Most of a worker's slots that tasks of this lane and of less urgent ones may hold together."""
    waiting_s: Annotated[int, Meta(ge=1)] | None = None
    """Deadline of a task from its submission; None: limits.waiting_s."""
    run_s: Annotated[float, Meta(ge=1)] | None = None
    """Longest run of an attempt; None: limits.run_s."""


LANES = {
    Lane.INTERACTIVE: LaneRule(share=0.7),
    Lane.NORMAL: LaneRule(share=0.2),
    Lane.BATCH: LaneRule(share=0.1, slots=0.5),
}


class Rates(Struct, frozen=True, kw_only=True):
    """Over all pools; 0: no limit. They hold in every window of that length, not only on average."""

    requests_per_s: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    tokens_per_min: Count = 0
    """Prompt and answer. The most that a task may use is reserved when it is submitted, the rest given back when it ends."""

    @property
    def any(self) -> bool:
        return bool(self.requests_per_s or self.tokens_per_min)


class Tenant(Rates, frozen=True, kw_only=True):
    """Who pays, and is kept fair. The rates hold for the lanes `interactive` and `normal`."""

    weight: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    """Of its share of a lane's tokens."""
    running: Count = 0
    """Tasks that run at once, a shard."""
    queued: Count = 0
    """Tasks that wait, a shard."""
    batch_tokens: Count = 0
    """Tokens that wait in the lane `batch`, a shard: what batches are limited by instead of the rates."""
    webhook_secret_file: str = ""
    """Signs webhooks to URLs that its tasks name; empty: they may name endpoints only."""


class Endpoint(Struct, frozen=True, kw_only=True):
    """Where webhooks go that name it."""

    url: str
    secret_file: Annotated[str, Meta(min_length=1)]
    """Holds `whsec_…`, one a line; while one is exchanged for another, both sign."""
    tenants: list[str] = []
    """Whose tasks may name it; empty: everybody's."""


class Webhooks(Struct, frozen=True, kw_only=True):
    """Rules for all webhooks, and the endpoints by their names."""

    allow_private: list[str] = []
    """Networks, such as `10.1.0.0/16`, that may be sent to though they are not public."""
    ports: list[Annotated[int, Meta(ge=1, le=65535)]] = field(default_factory=lambda: [80, 443])
    """That the URLs of messages may name."""
    base_url: str = ""
    """Of ingress, as receivers see it: put before the links in events."""
    endpoints: dict[str, Endpoint] = {}


class Key(Rates, frozen=True, kw_only=True):
    """An API key. Its rates hold beside those of its tenant."""

    tenant: str
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """Of the whole key, in hex: `headrace keys new` makes both."""


class Producer(Struct, frozen=True, kw_only=True):
    """A stream door of its own, hr:requests:<name>, for one system."""

    tenant: str


class Target(Struct, frozen=True, kw_only=True):
    model: str
    weight: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    variant: str = ""
    """What answers call this branch; empty: the model's name."""


class Shadow(Struct, frozen=True, kw_only=True):
    """A second submit of some of the requests, whose answers nobody gets."""

    model: str
    share: Share = 1.0
    tenant: str = "shadow"
    """Who it is charged to."""


class Alias(Struct, frozen=True, kw_only=True):
    """A name that clients use for one of several models."""

    targets: Annotated[list[Target], Meta(min_length=1)]
    """A user always gets the same one, as far as the weights stay."""
    fallbacks: list[str] = []
    """Models that are tried in turn when the chosen one accepts nothing more, or cannot meet the task's deadline."""
    shadow: Shadow | None = None


class Message(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: str
    content: str


class Template(Struct, frozen=True, kw_only=True):
    """Messages with places for `input_text`, `context` and `user`, in the language of Jinja."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    description: str = ""
    model: str = ""
    """When the task names none."""
    options: dict[str, Any] = {}
    """Further fields of the body, such as temperature; those of the task go first."""


class CacheRule(Struct, frozen=True, kw_only=True):
    """Answers that are kept for requests which are the same. The first rule that fits is taken."""

    ttl_s: Annotated[int, Meta(ge=1)]
    route: str = ""
    """Empty: any."""
    template: str = ""
    """Empty: any."""
    when: Literal["deterministic", "always"] = "deterministic"
    """`deterministic`: temperature 0."""
    shared: bool = False
    """Between all tenants."""


class Policy(Struct, frozen=True, kw_only=True):
    lanes: dict[Lane, LaneRule] = field(default_factory=lambda: dict(LANES))
    tenants: dict[str, Tenant] = {}
    keys: dict[str, Key] = {}
    producers: dict[str, Producer] = {}
    aliases: dict[str, Alias] = {}
    templates: dict[str, Template] = {}
    cache: list[CacheRule] = []
    webhooks: Webhooks = Webhooks()
    affinity: Annotated[float, Meta(ge=0, le=1)] = 0.8
    """How full a worker may be to be given a task because its KV cache holds the beginning of the prompt; 0: never for that."""
    keys_required: bool | None = None
    """None: where there are keys, or the door is not on loopback."""

    def tenant(self, name: str) -> Tenant:
        return self.tenants.get(name) or self.tenants.get(EVERYBODY) or _ANYBODY


_ANYBODY = Tenant()


class Live:
    """Holds the policy in force, which a reload replaces."""

    __slots__ = ("policy",)

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Live) and self.policy == other.policy

    __hash__ = None  # type: ignore[assignment]
