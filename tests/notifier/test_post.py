"""One request to a receiver: what comes of every way in which it can go wrong, and that it goes only where it may."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from services.notifier.post import Answer, Forbidden, Post, Unanswered
from services.notifier.receivers import TENANT_SLOTS
from tests.support.receiver import HANG, Receiver, answer

OPEN = ["127.0.0.0/8", "::1/128"]
SENT = {"webhook-id": "msg_1"}


@pytest.fixture
async def post() -> AsyncIterator[Post]:
    post = Post(lambda: OPEN)
    yield post
    await post.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


async def send(post: Post, url: str, timeout_s: float = 5.0) -> Answer:
    return await post.send(url, SENT, b'{"a":1}', timeout_s=timeout_s)


async def test_a_request_arrives_whole_with_the_name_that_it_was_sent_to(post: Post, receiver: Receiver) -> None:
    assert await send(post, receiver.url + "?x=y") == Answer(204)
    [hit] = receiver.hits
    assert (hit.path, hit.body, hit.id) == ("/hook?x=y", b'{"a":1}', "msg_1")
    assert hit.headers["host"] == f"localhost:{receiver.port}"
    assert hit.headers["content-type"] == "application/json"


async def test_a_connection_is_used_again(post: Post, receiver: Receiver) -> None:
    receiver.says = lambda hit: answer(200, body="thanks")
    for _ in range(3):
        assert (await send(post, receiver.url)).status == 200
    assert receiver.connections == 1


async def test_no_more_unused_connections_are_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.notifier.post.MOST_KEPT", 1)
    post = Post(lambda: OPEN)
    try:
        async with Receiver() as first, Receiver() as second:
            for receiver in (first, second, first, first):
                await send(post, receiver.url)
            assert (first.connections, second.connections) == (2, 1)
    finally:
        await post.close()


async def test_a_redirect_is_an_answer_like_any_other(post: Post, receiver: Receiver) -> None:
    receiver.says = lambda hit: answer(302, f"location: {receiver.url}/elsewhere")
    assert (await send(post, receiver.url)).status == 302
    assert len(receiver.hits) == 1


@pytest.mark.parametrize(
    ("said", "wait_s"),
    [("7", 7), ("-1", 0), ("soon", 0), ("nan", 0), ("inf", 0), ("1e9", 86_400), ("Wed, 21 Oct 2099 07:28:00 GMT", 86_400)],
)  # fmt: skip
async def test_retry_after_is_seconds_or_a_date_and_at_most_a_day(
    post: Post, receiver: Receiver, said: str, wait_s: float
) -> None:
    receiver.says = lambda hit: answer(503, f"retry-after: {said}")
    assert await send(post, receiver.url) == Answer(503, wait_s)


async def test_the_name_of_a_header_is_read_however_it_is_written(post: Post, receiver: Receiver) -> None:
    receiver.says = lambda hit: answer(429, "Retry-After: 7")
    assert await send(post, receiver.url) == Answer(429, 7)


async def test_an_endless_answer_is_read_no_further_than_it_is_worth(post: Post, receiver: Receiver) -> None:
    receiver.says = lambda hit: b"HTTP/1.1 200 fine\r\ncontent-length: 99999999\r\n\r\n" + b"x" * 200_000
    assert (await send(post, receiver.url)).status == 200


@pytest.mark.parametrize(
    "said", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 x\r\n" + b"y: z\r\n" * 50_000]
)
async def test_what_is_no_http_is_no_answer(post: Post, receiver: Receiver, said: bytes) -> None:
    receiver.says = lambda hit: said
    with pytest.raises(Unanswered):
        await send(post, receiver.url)


async def test_who_says_nothing_is_given_up(post: Post, receiver: Receiver) -> None:
    receiver.says = lambda hit: HANG
    with pytest.raises(Unanswered, match=r"no answer within 0\.2 s"):
        await send(post, receiver.url, timeout_s=0.2)


async def test_nobody_there_is_no_answer(post: Post) -> None:
    async with Receiver() as gone:
        url = gone.url
    with pytest.raises(Unanswered, match="no connection"):
        await send(post, url)


async def test_a_name_that_leads_nowhere_is_no_answer(post: Post) -> None:
    with pytest.raises(Unanswered, match="leads nowhere"):
        await send(post, "http://nowhere.invalid/")


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1", "0x7f000001", "2130706433", "[::ffff:127.0.0.1]", "0"]
)
async def test_no_way_of_writing_it_leads_to_this_machine(receiver: Receiver, host: str) -> None:
    post = Post(list)
    try:
        with pytest.raises(Forbidden, match=r"webhooks\.allow_private"):
            await send(post, f"http://{host}:{receiver.port}/")
    finally:
        await post.close()
    assert receiver.connections == 0


async def test_the_answer_of_the_name_server_is_what_is_checked_and_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public at one look and private at the next must not get through between the two."""
    looks = []

    def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        looks.append(host)
        address = "127.0.0.1" if len(looks) == 1 else "127.0.0.2"
        return [(2, 1, 6, "", ("10.0.0.1", port)), (2, 1, 6, "", (address, port))]

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    post = Post(lambda: ["127.0.0.1/32"])
    try:
        assert (await send(post, f"http://rebinding.example:{receiver.port}/")).status == 204
    finally:
        await post.close()
    assert looks == ["rebinding.example"]
    assert receiver.hits[0].headers["host"] == f"rebinding.example:{receiver.port}"


async def test_names_that_a_tenant_has_no_answer_for_leave_threads_for_other_names(
    post: Post, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, over = socket.getaddrinfo, threading.Event()

    def getaddrinfo(host: str, port: int, **more: Any) -> Any:
        if host.endswith(".example"):
            over.wait()
        return resolve("localhost", port, **more)

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    given_up = [send(post, f"http://{number}.example:{receiver.port}/", 0.1) for number in range(2 * TENANT_SLOTS)]
    try:
        answers = await asyncio.gather(*given_up, return_exceptions=True)
        assert all(isinstance(answer, Unanswered) for answer in answers)
        assert (await send(post, receiver.url)).status == 204
    finally:
        over.set()


# -- TLS


def tls_for(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """An authority that this process trusts."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return authority


async def test_a_certificate_is_checked_against_the_name_and_not_the_address(trusted: trustme.CA) -> None:
    post = Post(lambda: OPEN)
    try:
        async with Receiver(tls=tls_for(trusted, "localhost")) as good, Receiver(tls=tls_for(trusted, "other")) as bad:
            assert (await send(post, good.url)).status == 204
            with pytest.raises(Unanswered, match="no connection"):
                await send(post, bad.url)
            assert bad.hits == []
    finally:
        await post.close()


async def test_a_certificate_of_nobody_we_know_is_no_answer(post: Post) -> None:
    async with Receiver(tls=tls_for(trustme.CA(), "localhost")) as receiver:
        with pytest.raises(Unanswered, match="no connection"):
            await send(post, receiver.url)
        assert receiver.hits == []
