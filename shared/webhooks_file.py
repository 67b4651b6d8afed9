"""The table [webhooks] of headrace.toml, with the endpoints [webhooks.<name>], read into Webhooks (shared/policy.py)."""

from collections.abc import Mapping
from functools import partial
from ipaddress import ip_network
from typing import Any

from shared.faults import read_fields, read_table
from shared.ids import NAME
from shared.policy import Endpoint, Webhooks
from shared.urls import url_fault

RULES = tuple(name for name in Webhooks.__struct_fields__ if name != "endpoints")
"""What is no name of an endpoint."""


def parse(data: Mapping[str, Any], faults: list[str]) -> Webhooks:
    """What `data` says of it, as far as that is valid. Faults are appended, one line each."""
    table = read_table(data, "webhooks", faults)
    given = {name: table[name] for name in RULES if name in table}
    rules = read_fields(Webhooks, given, "webhooks.{}".format, faults)
    for network in rules.get("allow_private", []):
        try:
            ip_network(network)
        except ValueError as error:
            faults.append(f"webhooks.allow_private names {network!r}: expected a network such as 10.1.0.0/16 ({error})")
    if (base_url := rules.get("base_url")) and (fault := url_fault(base_url)):
        faults.append(f"webhooks.base_url is {base_url!r}: {fault}")
    endpoints = {name: _endpoint(name, table, faults) for name in table if name not in RULES}
    return Webhooks(**rules, endpoints={name: endpoint for name, endpoint in endpoints.items() if endpoint is not None})


def _endpoint(name: str, table: Mapping[str, Any], faults: list[str]) -> Endpoint | None:
    """Its URL may hold a secret, so no fault shows it."""
    where, before = f"webhooks.{name}", len(faults)
    if not NAME.fullmatch(name):
        faults.append(f"webhooks.{name!r}: a name is 1 to 128 letters, digits and the signs _ . : @ -")
    if not isinstance(table[name], dict):
        faults.append(f"{where}: neither a rule ({', '.join(RULES)}) nor a table, [{where}]")
        return None
    values = read_fields(Endpoint, table[name], partial("{}.{}".format, where), faults)
    if "url" in values and (fault := url_fault(values["url"])):
        faults.append(f"{where}.url: {fault}")
    return Endpoint(**values) if len(faults) == before else None
