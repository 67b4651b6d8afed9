"""`headrace keys new`: an API key, shown once, and what the configuration is told of it."""

import argparse
import sys

from services.cli.failure import OK, USAGE, Failure
from shared.payer import digest_of, new_key
from shared.wishes import NAME


def run(arguments: argparse.Namespace) -> int:
    """Nothing is kept: whoever loses the key makes another. Raises: Failure."""
    for option, name in (("--tenant", arguments.tenant), ("--name", arguments.name or arguments.tenant)):
        if not NAME.fullmatch(name):
            raise Failure(
                f"{option} is {name!r}: allowed are 1 to 128 letters, digits and the signs _ . : @ -", code=USAGE
            )
    key = new_key()
    print(key, flush=True)
    print(f"\n{entry(arguments.name or arguments.tenant, arguments.tenant, key)}", flush=True)
    print(
        "The first line is the key: it is shown this once; clients send it as `Authorization: Bearer <key>`. The rest goes "
        f"into headrace.toml beside [tenants.{arguments.tenant}], and holds within seconds. The first key there shuts out "
        "everybody who has none.",
        file=sys.stderr,
    )
    return OK


def entry(name: str, tenant: str, key: str) -> str:
    """The lines of headrace.toml."""
    return f'[keys."{name}"]\ntenant = "{tenant}"\nsha256 = "{digest_of(key)}"\n'
