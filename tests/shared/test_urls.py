"""Where a request of ours may go: no name and no way of writing an address leads inside."""

from ipaddress import ip_address

import pytest

from shared.urls import may_connect, url_fault


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "0.0.0.0", "255.255.255.255", "240.0.0.1",
        "169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1", "224.0.0.1",
        "::", "::1", "fe80::1", "fe80::1%lo", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::",
    ],
)  # fmt: skip
def test_what_is_not_public_is_not_connected_to(address: str) -> None:
    assert not may_connect(ip_address(address), [])


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_what_is_public_is(address: str) -> None:
    assert may_connect(ip_address(address), [])


def test_a_network_that_is_allowed_opens_itself_and_nothing_else() -> None:
    allowed = ["10.1.0.0/16", "fd00::/8"]
    assert may_connect(ip_address("10.1.2.3"), allowed)
    assert may_connect(ip_address("::ffff:10.1.2.3"), allowed)
    assert may_connect(ip_address("fd00::1"), allowed)
    assert not may_connect(ip_address("10.2.0.1"), allowed)


@pytest.mark.parametrize("url", ["https://a.example", "http://a.example:8080/x?y=z", "https://[::1]/"])
def test_a_url_of_http_is_in_order(url: str) -> None:
    assert url_fault(url) == ""


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://a.example/", "expected http"),
        ("https:///x", "expected http"),
        ("https://a.example:0/", "expected http"),
        ("https://user:word@a.example/", "neither a user"),
        ("https://a.example/#part", "nor a fragment"),
        ("https://a.example/\r\nx: y", "printable ASCII"),
        ("https://a.example/a b", "printable ASCII"),
        ("https://ä.example/", "printable ASCII"),
        ("https://a.example/" + "x" * 2048, "at most 2048"),
        ("https://a.example:99999/", "cannot be read"),
        ("https://[::1/", "cannot be read"),
    ],
)
def test_any_other_is_refused_with_the_reason(url: str, why: str) -> None:
    assert why in url_fault(url)
