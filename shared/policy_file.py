"""The part of headrace.toml that may change while everything runs, read into a Policy (shared/policy.py).

What needs a restart, pools and limits, is given: a policy can name only models that a pool serves, and allow no more than
the limits do.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec

from shared import webhooks_file
from shared.faults import nearest, read_fields, read_table, read_tables
from shared.ids import NAME
from shared.lifecycle import Lane
from shared.policy import EVERYBODY, LANES, Alias, CacheRule, Key, LaneRule, Policy, Producer, Shadow, Template, Tenant
from shared.routes import CHAT, ROUTES

if TYPE_CHECKING:  # shared/config.py has its policy read here
    from shared.config import Limits

SHA256 = re.compile(r"[0-9a-f]{64}")
SHADOW_TENANT = Shadow(model="").tenant
PLAIN_TEMPLATE = "default"
"""Built in: the text is the user's message."""
SET_BY_US = ("messages", "model", "stream", "stream_options")
"""Fields of a body that the options of a template cannot say."""

TABLES = ("aliases", "cache", "keys", "lanes", "producers", "templates", "tenants", "webhooks")
SCALARS = tuple(sorted(set(Policy.__struct_fields__) - set(TABLES)))


def parse(data: Mapping[str, Any], models: Collection[str], limits: "Limits", faults: list[str]) -> Policy:
    """What `data` says of it, as far as that is valid. Faults are appended, one line each.

    `models`: those that a pool serves.
    """
    policy = Policy(
        lanes=_lanes(data, limits, faults),
        tenants=read_tables(Tenant, data, "tenants", faults),
        keys=_keys(data, faults),
        producers=read_tables(Producer, data, "producers", faults),
        aliases=read_tables(Alias, data, "aliases", faults),
        templates=read_tables(Template, data, "templates", faults),
        cache=_cache(data, limits, faults),
        webhooks=webhooks_file.parse(data, faults),
        **read_fields(Policy, {key: data[key] for key in SCALARS if key in data}, str, faults),
    )
    _check_names(data, faults)
    _check_tenants(data, policy, faults)
    _check_aliases(policy, models, faults)
    _check_templates(data, policy, models, faults)
    return policy


def _lanes(data: Mapping[str, Any], limits: "Limits", faults: list[str]) -> dict[Lane, LaneRule]:
    rules, tables = dict(LANES), read_table(data, "lanes", faults)
    for name in tables:
        if name not in list(Lane):
            faults.append(f"lanes.{name}: unknown{nearest(name, list(Lane), 'lanes.{}'.format)}")
            continue
        rule = LANES[Lane(name)]
        given = {"share": rule.share} | read_table(tables, name, faults, "lanes.")
        values = read_fields(LaneRule, given, partial("lanes.{}.{}".format, name), faults)
        rules[Lane(name)] = rule = msgspec.structs.replace(rule, **values)
        for field in ("waiting_s", "run_s"):
            said, most = getattr(rule, field), getattr(limits, field)
            if said is not None and said > most:
                faults.append(f"lanes.{name}.{field} is {said}: at most {most} (limits.{field})")
    for lane, less in pairwise(Lane):
        if rules[less].slots > rules[lane].slots:
            faults.append(
                f"lanes.{less}.slots is {rules[less].slots}: at most {rules[lane].slots} (lanes.{lane}.slots)"
            )
    return rules


def _keys(data: Mapping[str, Any], faults: list[str]) -> dict[str, Key]:
    """No fault shows a value that may be the key itself, put in the wrong place."""
    tables = data.get("keys", {})
    if not isinstance(tables, dict):
        faults.append("keys: expected a table, [keys]")
        return {}
    checked, owners = {}, dict[str, str]()
    for name, given in tables.items():
        if not isinstance(given, dict):
            faults.append(f"keys.{name}: expected a table, [keys.{name}]")
            continue
        digest = given.get("sha256", "")
        if not isinstance(digest, str) or not SHA256.fullmatch(digest):
            if "sha256" in given:
                faults.append(
                    f"keys.{name}.sha256: expected 64 hex digits, in lower case; `headrace keys new` makes them"
                )
                given = given | {"sha256": "0" * 64}
        elif owners.setdefault(digest, name) != name:
            faults.append(f"keys.{name}.sha256 is that of keys.{owners[digest]}: no two keys may be the same")
        checked[name] = given
    return read_tables(Key, {"keys": checked}, "keys", faults)


def _cache(data: Mapping[str, Any], limits: "Limits", faults: list[str]) -> list[CacheRule]:
    """The kept answer is the result of a task, so no rule outlives it."""
    given = data.get("cache", [])
    if not isinstance(given, list) or not all(isinstance(rule, dict) for rule in given):
        faults.append(f"cache is {given!r}: expected tables, [[cache]]")
        return []
    rules, templates = dict[int, CacheRule](), [PLAIN_TEMPLATE, *_names(data, "templates")]
    for number, table in enumerate(given):
        before = len(faults)
        values = read_fields(CacheRule, table, partial("cache[{}].{}".format, number), faults)
        if values.get("ttl_s", 0) > limits.results_kept_s:
            faults.append(
                f"cache[{number}].ttl_s is {values['ttl_s']}: at most {limits.results_kept_s} (limits.results_kept_s)"
            )
        if (template := values.get("template")) and template not in templates:
            hint = nearest(template, templates)
            faults.append(f"cache[{number}].template is {template!r}: there is no such template{hint}")
        if (route := values.get("route")) and route not in ROUTES:
            faults.append(f"cache[{number}].route is {route!r}: allowed: {', '.join(ROUTES)}")
        if len(faults) == before:
            rules[number] = CacheRule(**values)
    _check_reach(rules, faults)
    return list(rules.values())


def _check_reach(rules: Mapping[int, CacheRule], faults: list[str]) -> None:
    """A rule that is never taken would be ignored without a word."""
    for number, rule in rules.items():
        if rule.template and rule.route not in ("", CHAT):
            faults.append(
                f"cache[{number}] is never taken: a template makes a chat; its route is {CHAT!r}, or left out"
            )
        first = next((before for before in rules if before < number and _covers(rules[before], rule)), None)
        if first is not None:
            faults.append(
                f"cache[{number}] is never taken: cache[{first}] fits all that it fits; put that one behind it"
            )


def _covers(rule: CacheRule, other: CacheRule) -> bool:
    route = other.route or (CHAT if other.template else "")
    return (
        rule.route in ("", route)
        and rule.template in ("", other.template)
        and (rule.when == "always" or rule.when == other.when)
    )


def _check_names(data: Mapping[str, Any], faults: list[str]) -> None:
    for table in ("tenants", "keys", "producers", "templates"):
        for name in _names(data, table):
            if not NAME.fullmatch(name) and (table, name) != ("tenants", EVERYBODY):
                faults.append(f"{table}.{name!r}: a name is 1 to 128 letters, digits and the signs _ . : @ -")
    for name in _names(data, "aliases"):
        if not 1 <= len(name) <= 200 or not name.isprintable():
            faults.append(f"aliases.{name!r}: a name is 1 to 200 characters, all of them printable")


def _check_tenants(data: Mapping[str, Any], policy: Policy, faults: list[str]) -> None:
    """A slip of the keyboard must not become a tenant without limits. A shadow that names none may have one."""
    known = _names(data, "tenants")
    named = {f"keys.{name}": key.tenant for name, key in policy.keys.items()}
    named |= {f"producers.{name}": producer.tenant for name, producer in policy.producers.items()}
    for name, alias in policy.aliases.items():
        if alias.shadow is not None and alias.shadow.tenant != SHADOW_TENANT:
            named[f"aliases.{name}.shadow"] = alias.shadow.tenant
    for name, endpoint in policy.webhooks.endpoints.items():
        named |= {f"webhooks.{name}.tenants[{number}]": tenant for number, tenant in enumerate(endpoint.tenants)}
    for where, tenant in named.items():
        if not NAME.fullmatch(tenant):
            faults.append(f"{where}.tenant is {tenant!r}: a name is 1 to 128 letters, digits and the signs _ . : @ -")
        elif EVERYBODY not in known and tenant not in known:
            faults.append(f"{where}.tenant is {tenant!r}: there is no [tenants.{tenant}]{nearest(tenant, known)}")


def _check_aliases(policy: Policy, models: Collection[str], faults: list[str]) -> None:
    for name, alias in policy.aliases.items():
        if name in models:
            faults.append(f"aliases.{name}: a pool serves a model of that name")
        for where, model in _models_of(alias):
            if model not in models:
                faults.append(f"aliases.{name}.{where} is {model!r}: no pool serves it{nearest(model, list(models))}")
        variants = [target.variant or target.model for target in alias.targets]
        for number, target in enumerate(alias.targets):
            if not target.variant.isprintable():  # answers name it in a header
                faults.append(
                    f"aliases.{name}.targets[{number}].variant is {target.variant!r}: printable characters only"
                )
        for variant in sorted({variant for variant in variants if variants.count(variant) > 1}):
            faults.append(f"aliases.{name}.targets: the variant {variant!r} is there twice; give each target its own")
        for model in sorted({model for model in alias.fallbacks if alias.fallbacks.count(model) > 1}):
            faults.append(f"aliases.{name}.fallbacks: {model!r} is there twice")


def _models_of(alias: Alias) -> Iterator[tuple[str, str]]:
    for number, target in enumerate(alias.targets):
        yield f"targets[{number}].model", target.model
    for number, model in enumerate(alias.fallbacks):
        yield f"fallbacks[{number}]", model
    if alias.shadow is not None:
        yield "shadow.model", alias.shadow.model


def _check_templates(data: Mapping[str, Any], policy: Policy, models: Collection[str], faults: list[str]) -> None:
    if PLAIN_TEMPLATE in _names(data, "templates"):
        faults.append(f"templates.{PLAIN_TEMPLATE}: this one is built in; choose another name")
    if policy.templates:
        from shared import templates  # Jinja takes a while to import, and few files need it

        for name, template in policy.templates.items():
            faults += [f"templates.{name}.{fault}" for fault in templates.faults(template)]
    served = [*models, *_names(data, "aliases")]
    for name, template in policy.templates.items():
        if template.model and template.model not in served:
            hint = nearest(template.model, served)
            faults.append(f"templates.{name}.model is {template.model!r}: neither a pool's model nor an alias{hint}")
        for field in SET_BY_US:
            if field in template.options:
                faults.append(
                    f"templates.{name}.options.{field}: options cannot say this; [templates.{name}] can say model"
                )


def _names(data: Mapping[str, Any], table: str) -> list[str]:
    """Of all its entries: one that has a fault is there too."""
    entries = data.get(table, {})
    return list(entries) if isinstance(entries, dict) else []
