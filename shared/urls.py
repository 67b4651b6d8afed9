"""URLs that others name: their shape, and which addresses a request of ours may go to."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_network
from urllib.parse import urlsplit

LONGEST_URL = 2048

Address = IPv4Address | IPv6Address

NAT64 = ip_network("64:ff9b::/96")
PLATFORM = tuple(map(ip_network, ("168.63.129.16/32", "192.0.0.0/24", "fec0::/10")))
"""What the library takes for public, and is not: where Azure and Oracle answer their own machines, and site-local addresses."""
_PRINTED = re.compile(r"[!-~]+")


def may_connect(address: Address, allowed: Sequence[str]) -> bool:
    """Whether it is a public address, or in one of the networks `allowed`."""
    if any(address in ip_network(network) for network in allowed):
        return True
    if isinstance(address, IPv6Address) and (inner := _inner(address)) is not None:
        return may_connect(inner, allowed)
    odd = address.is_multicast or address.is_reserved or any(address in network for network in PLATFORM)
    return address.is_global and not odd


def url_fault(url: str) -> str:
    """What is wrong with it by itself; empty: nothing."""
    if len(url) > LONGEST_URL or not _PRINTED.fullmatch(url):
        return f"a URL is at most {LONGEST_URL} characters, all of them printable ASCII and none a space"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"it cannot be read as a URL ({error})"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return "expected http://<server>/… or https://<server>/…"
    if "@" in parts.netloc or parts.fragment:
        return "it may hold neither a user nor a fragment"
    return ""


def _inner(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that it stands for."""
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
