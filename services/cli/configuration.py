"""`headrace config check`: what headrace.toml says, or everything that is wrong with it."""

import argparse
import os
from collections.abc import Iterable, Iterator

from services.cli.failure import OK
from shared import config
from shared.config import DEFAULT_PATH, Config
from shared.policy import Alias, LaneRule, Policy

NAMED = 10
"""Names of one kind that are listed."""


def run(arguments: argparse.Namespace) -> int:
    """Raises: ConfigError, with every fault."""
    path = arguments.file or os.environ.get("HEADRACE_CONFIG") or None  # noqa: TID251  as the services find it
    read = config.load(path)
    print(f"{read.path} is valid." if read.path else f"There is no {DEFAULT_PATH} here: the built-in defaults hold.")
    for subject, told in summary(read):
        print(f"  {subject:<10} {told}")
    return OK


def summary(read: Config) -> Iterator[tuple[str, str]]:
    """(subject, what the file says of it) of everything that it says."""
    policy = read.policy
    yield "durability", f"{read.durability}, {count(read.replicas, 'replica')}" if read.replicas else read.durability
    for name, pool in read.pools.items():
        yield "pool", f"{name}: {', '.join(pool.models)} ({pool.engine}, {count(pool.shards, 'shard')})"
    yield from lanes(policy)
    for subject, entries in (("tenants", policy.tenants), ("producers", policy.producers)):
        if entries:
            yield subject, names(entries)
    if policy.keys or policy.keys_required is not None:
        yield "keys", f"{names(policy.keys)}; {required(policy)}" if policy.keys else f"none; {required(policy)}"
    for name, alias in policy.aliases.items():
        yield "alias", f"{name}: {branches(alias)}"
    if policy.templates:
        yield "templates", names(policy.templates)
    if policy.cache:
        yield "cache", count(len(policy.cache), "rule")


def lanes(policy: Policy) -> Iterator[tuple[str, str]]:
    whole = sum(rule.share for rule in policy.lanes.values())
    for lane, rule in policy.lanes.items():
        yield "lane", f"{lane}: {', '.join(lane_terms(rule, whole))}"


def lane_terms(rule: LaneRule, whole: float) -> Iterator[str]:
    yield f"{percent(rule.share, whole)} of the tokens"
    if rule.slots < 1:
        yield f"at most {percent(rule.slots, 1)} of a worker's slots"
    if rule.waiting_s is not None:
        yield f"{rule.waiting_s} s to its deadline"
    if rule.run_s is not None:
        yield f"{rule.run_s:g} s for a run"


def branches(alias: Alias) -> str:
    whole = sum(target.weight for target in alias.targets)
    said = [f"{target.variant or target.model} {percent(target.weight, whole)}" for target in alias.targets]
    terms = [", ".join(said)]
    if alias.fallbacks:
        terms.append(f"else {', '.join(alias.fallbacks)}")
    if alias.shadow is not None:
        terms.append(f"shadow {alias.shadow.model} {percent(alias.shadow.share, 1)}")
    return "; ".join(terms)


def required(policy: Policy) -> str:
    return "not required" if policy.keys_required is False else "required"


def names(entries: Iterable[str]) -> str:
    every = sorted(entries)
    more = f" and {len(every) - NAMED} more" if len(every) > NAMED else ""
    return f"{len(every)}: {', '.join(every[:NAMED])}{more}"


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3g} %"


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
