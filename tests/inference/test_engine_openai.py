"""The engine of an upstream: what it is sent, what is passed on, and what each kind of trouble becomes."""

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trustme

from services.inference.breaker import FAILED_TASKS
from services.inference.engine import Answer, Call, CannotResume, Chunk
from services.inference.engine_openai import OpenaiEngine, renamed
from services.inference.upstream_answer import STREAM_SHARE, Broken, Reading, retry_after_s
from shared.clock import now_ms
from shared.engine_options import OpenaiOptions, Patience, Upstream
from shared.errors import ConfigError
from shared.lifecycle import Lane
from shared.routes import CHAT, MESSAGES, RESPONSES
from tests.support.engines import called
from tests.support.upstream import HANG, LAST, STREAM, Endless, Part, chunked, frame, reply, troublemaker
from tests.support.vllm_server import MODEL, vllm_server
from tests.support.waiting import wait_until

BODY = (
    b'{ "model":"m" , "big":1e400,"n":12345678901234567890, "messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}]}'
)
WHOLE = b'{"id":"x", "choices":[ ], "model":"theirs"}'
FRAMES = [b'{"id":"x","choices":[{"delta":{"content":"a"}}]}', b'{"choices":[{"delta":{},"finish_reason":"stop"}]}']
RESULT_BYTES = 4096


@contextlib.asynccontextmanager
async def running(
    *urls: str, slots: int = 0, of_each: dict[str, Any] | None = None, **pool: Any
) -> AsyncIterator[OpenaiEngine]:
    upstreams = [Upstream(url=url, **(of_each or {})) for url in urls]
    options = OpenaiOptions(upstreams=upstreams, **pool)
    held = 100.0  # no pause ends
    engine = OpenaiEngine(model="m", options=options, slots=slots, result_bytes=RESULT_BYTES, clock=lambda: held)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def call(route: str = CHAT, body: bytes = BODY, **more: Any) -> Call:
    return Call(**{"task_id": "t1", "priority": 1, **more}, route=route, body=body)


def streamed(*frames: bytes, done: bool = True) -> list[Part]:
    return [STREAM, *(chunked(frame(data)) for data in [*frames, *([b"[DONE]"] if done else [])]), LAST]


def error_of(answer: Answer) -> dict[str, Any]:
    error: dict[str, Any] = msgspec.json.decode(answer.body)["error"]
    return error


# -- what goes out and comes back


async def test_body_and_answer_go_through_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-1\n")
    async with (
        troublemaker([reply(WHOLE)]) as upstream,
        running(upstream.url, of_each={"key_file": str(tmp_path / "key")}) as engine,
    ):
        chunks, answer = await called(engine, call())
    assert (chunks, answer) == ([], Answer(status=200, body=WHOLE))
    (asked,) = upstream.asked
    assert (asked.path, asked.body) == ("/v1/chat/completions", BODY)
    sent = {name: asked.headers[name] for name in ("authorization", "content-type", "x-request-id", "accept-encoding")}
    assert sent == {
        "authorization": "Bearer sk-1",
        "content-type": "application/json",
        "x-request-id": "t1",
        "accept-encoding": "identity",
    }


async def test_frames_become_chunks_whatever_ends_their_lines() -> None:
    answer = [STREAM, *(chunked(b"event: x\r\ndata: " + data + b"\r\n\r\n") for data in FRAMES), LAST]
    async with troublemaker(streamed(*FRAMES), answer) as upstream, running(upstream.url) as engine:
        for _ in range(2):
            chunks, end = await called(engine, call())
            assert ([chunk.data for chunk in chunks], end) == (FRAMES, Answer(status=200, body=b""))


def test_another_name_of_the_model_leaves_every_other_value_as_it_was() -> None:
    assert renamed(BODY, "their/m").replace(b"their/m", b"m") == BODY.replace(b" , ", b",").replace(
        b", ", b","
    ).replace(b"{ ", b"{")
    assert renamed(b'{"prompt":"no model"}', "x") == b'{"prompt":"no model"}'
    assert renamed(b"no json", "x") == b"no json"
    assert renamed(b'{"model": "poet"}', "their/m", ["poet"]) == b'{"model": "poet"}'


async def test_the_upstreams_name_of_the_model_is_sent_also_in_a_form() -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\xff\r\n--b--\r\n'
    async with troublemaker([reply(WHOLE)]) as upstream, running(upstream.url, of_each={"model": "theirs"}) as engine:
        await called(engine, call())
        await called(engine, call("/v1/audio/transcriptions", form, content_type="multipart/form-data; boundary=b"))
    assert msgspec.json.decode(upstream.asked[0].body.replace(b"1e400", b"0"))["model"] == "theirs"
    assert upstream.asked[1].body == form.replace(b"\r\n\r\nm\r\n", b"\r\n\r\ntheirs\r\n")
    assert upstream.asked[1].headers["content-type"] == "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("route", "kind"), [("/v1/audio/speech", "audio/wav"), ("/v1/audio/transcriptions", "text/plain")]
)
async def test_an_answer_that_is_not_json_keeps_its_content_type(route: str, kind: str) -> None:
    async with troublemaker([reply(b"\xff\x00", kind=kind)]) as upstream, running(upstream.url) as engine:
        _, answer = await called(engine, call(route))
    assert answer == Answer(status=200, body=b"\xff\x00", content_type=kind)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("audio/mpeg; name=\udcff", "audio/mpeg; name=?"),
        ("audio/mpeg; name=日本", "audio/mpeg; name=??"),
        ("a/b\t", "a/b?"),
    ],
    ids=["no UTF-8", "not ASCII", "unprintable"],
)
def test_a_content_type_is_told_as_json_and_a_header_can_hold_it(kind: str, told: str) -> None:
    reading = Reading("up", "/v1/audio/speech", 200, {"content-type": kind}, 1000)
    reading.feed(b"\xff")
    assert reading.end() == Answer(status=200, body=b"\xff", content_type=told)
    failing = Reading("up", "/v1/audio/speech", 500, {"content-type": kind}, 1000)
    assert told.encode().partition(b";")[0] in failing.end().body
    with pytest.raises(Broken, match=r"answers in br\?,"):
        Reading("up", "/v1/audio/speech", 200, {"content-encoding": "br\udcff"}, 1000)


async def test_what_another_call_has_published_is_not_continued() -> None:
    async with troublemaker([reply(WHOLE)]) as upstream, running(upstream.url) as engine:
        with pytest.raises(CannotResume):
            await called(engine, call(published=(Chunk(b"{}"),)))
    assert upstream.asked == []


# -- trouble

DEEP = b'{"a":' + b"[" * 1500 + b"]" * 1500 + b"}"
HTML = b"<html><title>502 Bad Gateway</title></html>"
TROUBLE: dict[str, tuple[Sequence[Part], int, str]] = {
    "a page": ([reply(HTML, kind="text/html")], 502, "text/html instead of JSON"),
    "a page with an error": ([reply(HTML, 502, "text/html")], 502, "answers 502 with text/html"),
    "a page for a wrong address": ([reply(HTML, 404, "text/html")], 404, "answers 404 with text/html"),
    "plain text": ([reply(b"ok", kind="text/plain")], 502, "text/plain instead of JSON"),
    "no JSON": ([reply(b'{"choices":')], 502, "not JSON"),
    "invalid UTF-8": ([reply(b'{"text":"\xff"}')], 502, "not JSON"),
    "JSON nested too deep": ([reply(DEEP)], 502, "not JSON"),
    "nothing": ([reply(b"")], 502, "not JSON"),
    "no content of a kind": ([reply(b"", kind="audio/wav")], 502, "not JSON"),
    "a redirect": ([reply(b"", 307, location="http://elsewhere")], 502, "redirect"),
    "a key that is refused": ([reply(b'{"error":{"message":"no sk-1","type":"x"}}', 401)], 502, "key_file"),
    "compression": ([reply(b"x", content_encoding="gzip")], 502, "gzip"),
    "no HTTP": ([b"220 smtp ready\r\n\r\n"], 502, "broken off"),
    "no answer": ([], 502, "broken off"),
    "a shorter body than it says": ([reply(b"{}", content_length="99")], 502, "broken off"),
    "a longer body than it says": ([reply(WHOLE, content_length="9")], 502, "broken off"),
    "two lengths": ([reply(b"{}", content_length="2\r\ncontent-length: 3")], 502, "broken off"),
    "an endless head": ([b"HTTP/1.1 200 OK\r\n", Endless(b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n")], 502, "broken off"),
    "an endless body": (
        [b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n", Endless(b" " * 1000)],
        507,
        f"more than {RESULT_BYTES} bytes",
    ),
    "an endless error": ([b"HTTP/1.1 500 No\r\ncontent-type: text/plain\r\n\r\n", Endless(b"no" * 500)], 500, "answers 500"),
    "a stream that is cut": ([STREAM, chunked(frame(FRAMES[0]))], 502, "broken off"),
    "a stream that ends early": (streamed(FRAMES[0], done=False), 502, "ended its stream before"),
    "a stream without a reason to end": (
        streamed(b'{"choices":[{"delta":{"content":"a"},"finish_reason":""}]}', done=False), 502, "ended its stream before",
    ),
    "a frame that is no JSON": (streamed(b"hello"), 502, "no JSON object"),
    "a frame that is no object": (streamed(b"[1]"), 502, "no JSON object"),
    "a frame nested too deep": (streamed(DEEP), 502, "no JSON object"),
    "a frame with invalid UTF-8": (streamed(b'{"a":"\xff"}'), 502, "no JSON object"),
    "an endless frame": ([STREAM, chunked(b"data: "), Endless(chunked(b"x" * 1000))], 507, "more than"),
    "an endless stream": ([STREAM, Endless(chunked(frame(FRAMES[0])))], 507, f"more than {STREAM_SHARE * RESULT_BYTES} bytes"),
    "an error in the stream": (
        streamed(FRAMES[0], b'{"error":{"message":"too hot","type":"server_error","code":503}}'),
        503,
        "too hot",
    ),
    "an error whose type stands behind": (streamed(b'{"code": "bad", "message": "no such voice", "type": "error"}'), 500, "no such voice"),
    "an error in the stream without a code": (streamed(b'{"error":{"message":"lost","code":null}}'), 500, "lost"),
    "an overload by another number": ([reply(b'{"error":{"message":"overloaded","type":"x"}}', 529)], 503, "overloaded"),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "status", "words"), TROUBLE.values(), ids=TROUBLE)
async def test_trouble_becomes_a_clear_error(parts: Sequence[Part], status: int, words: str) -> None:
    async with troublemaker(parts) as upstream, running(upstream.url) as engine:
        chunks, answer = await called(engine, call())
        assert answer.status == status, answer.body
        assert words in error_of(answer)["message"]
        assert error_of(answer).keys() == {"message", "type", "param", "code"} or b'"error"' in answer.body
        assert "sk-1" not in answer.body.decode()
        assert all(b'"content":"a"' in chunk.data for chunk in chunks)
        assert engine.capacity().running == 0
        await wait_until(lambda: upstream.left or not any(isinstance(part, Endless) for part in parts), "it is left")


@pytest.mark.parametrize(
    ("route", "frames", "last"),
    [
        (RESPONSES, [b'{"type":"response.created"}'], b'{"type":"response.completed","response":{}}'),
        (RESPONSES, [b'{"type":"response.output_text.delta","delta":"a"}'], b'{"type":"response.incomplete"}'),
        (MESSAGES, [b'{"type":"message_start"}', b'{"type":"ping"}'], b'{"type":"message_stop"}'),
    ],
)
async def test_a_stream_is_complete_with_the_last_event_of_its_route(
    route: str, frames: list[bytes], last: bytes
) -> None:
    cut, whole = streamed(*frames, done=False), streamed(*frames, last, done=False)
    async with troublemaker(cut, whole) as upstream, running(upstream.url) as engine:
        _, answer = await called(engine, call(route))
        assert (answer.status, "ended its stream before" in error_of(answer)["message"]) == (502, True)
        chunks, answer = await called(engine, call(route))
    assert ([chunk.data for chunk in chunks], answer.status) == ([*frames, last], 200)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([HANG], "first_byte_s"),
        ([STREAM, HANG], "first_byte_s"),
        ([STREAM, chunked(frame(FRAMES[0])), HANG], "between_bytes_s"),
        ([b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{", HANG], "between_bytes_s"),
        ([b"HTTP/1.1 500 No\r\ncontent-type: application/json\r\n\r\n{", HANG], "between_bytes_s"),
    ],
)
async def test_an_upstream_that_hangs_is_left_after_the_time_that_the_setting_says(
    parts: Sequence[Part], words: str
) -> None:
    times: dict[str, Any] = {words: 0.1}
    async with troublemaker(parts) as upstream, running(upstream.url, **times) as engine:
        _, answer = await called(engine, call())
        assert (answer.status, error_of(answer)["code"]) == (504, "upstream_timeout")
        assert words in error_of(answer)["message"]
        await wait_until(lambda: upstream.left == 1, "the connection is closed")


async def test_what_cannot_be_connected_to_is_an_error() -> None:
    async with troublemaker([]) as upstream:
        url = upstream.url
        async with running(url.replace("http:", "https:")) as engine:
            _, answer = await called(engine, call())
            assert (answer.status, "SSL" in error_of(answer)["message"]) == (502, True)
            assert not answer.unreached
    for nowhere in (url, "http://no-such-host.invalid"):
        async with running(nowhere) as engine:
            _, answer = await called(engine, call())
            assert (answer.status, "could not be connected to" in error_of(answer)["message"]) == (502, True)
            assert answer.unreached
            assert engine.capacity().slots == 0


async def test_a_handshake_that_hangs_is_left_after_connect_s() -> None:
    left = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        left.set()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, running(url, connect_s=0.1) as engine:
        _, answer = await called(engine, call())
        await left.wait()
    assert (answer.status, "connect_s" in error_of(answer)["message"]) == (504, True)
    assert answer.unreached


async def test_an_authority_of_ones_own_is_trusted_where_the_pool_says_so(tmp_path: Path) -> None:
    authority, tls = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with troublemaker([reply(WHOLE)], tls=tls) as upstream:
        async with running(upstream.url, ca_file=str(tmp_path / "ca.pem")) as engine:
            _, answer = await called(engine, call())
            assert answer.status == 200
        async with running(upstream.url) as engine:
            _, answer = await called(engine, call())
    assert (answer.status, "SSL: CERTIFICATE_VERIFY_FAILED" in error_of(answer)["message"]) == (502, True)


async def test_certificates_that_cannot_be_read_are_a_fault_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for file in (tmp_path / "ca.pem", tmp_path / "none.pem"):
        options = OpenaiOptions(upstreams=[Upstream(url="https://one")], ca_file=str(file))
        engine = OpenaiEngine(model="m", options=options, slots=0, result_bytes=RESULT_BYTES)
        with pytest.raises(ConfigError, match=r"openai\.ca_file .*\.pem"):
            await engine.start()


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"error":"model not found"}', "model not found", 422),
        (b'{"error":{"message":"bad","code":"too_long"}}', "bad", "too_long"),
        (b'[{"error":{"message":"bad","code":400,"status":"INVALID"}}]', "bad", 400),
        (b'{"detail":[{"loc":["body"],"msg":"required"}]}', '[{"loc":["body"],"msg":"required"}]', 422),
        (b'{"object":"error","message":"bad","code":40001}', "bad", 40001),
        (b"{}", "upstreams[0] answers 422 with application/json.", 422),
    ],
)
async def test_errors_of_other_shapes_are_told_as_openai_does(body: bytes, message: str, code: str | int) -> None:
    async with troublemaker([reply(body, 422)]) as upstream, running(upstream.url) as engine:
        _, answer = await called(engine, call())
    error = error_of(answer)
    assert (answer.status, error["message"], error["code"], error["type"]) == (
        422,
        message,
        code,
        "invalid_request_error",
    )


async def test_an_error_that_an_openai_client_can_read_is_passed_on_as_it_came() -> None:
    body = b'{"error": {"message":"no", "type":"BadRequestError","param":"n","code":400, "more":1}}'
    async with troublemaker([reply(body, 400)]) as upstream, running(upstream.url) as engine:
        _, answer = await called(engine, call())
    assert answer == Answer(status=400, body=body)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, 0),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "1e9"}, 3600),
        ({"retry-after": "inf"}, 0),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "Sat, 01 Jan 2000 00:00:00 GMT"}, 0),
        ({"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}, 3600),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], wait_s: float) -> None:
    assert now_ms() < 4_000_000_000_000
    assert retry_after_s(headers) == wait_s


# -- several upstreams, and their room


async def test_another_upstream_is_asked_at_once_while_nothing_was_passed_on() -> None:
    async with troublemaker([reply(b"{}", 503)]) as bad, troublemaker([reply(WHOLE)]) as good:
        async with running(bad.url, good.url) as engine:
            _, answer = await called(engine, call())
    assert (answer.status, len(bad.asked), len(good.asked)) == (200, 1, 1)


async def test_none_is_asked_for_a_fault_of_the_request_or_once_something_was_passed_on() -> None:
    for parts, status in (([reply(b"{}", 400)], 400), ([STREAM, chunked(frame(FRAMES[0]))], 502)):
        async with troublemaker(parts) as bad, troublemaker([reply(WHOLE)]) as good:
            async with running(bad.url, good.url) as engine:
                _, answer = await called(engine, call())
        assert (answer.status, len(good.asked)) == (status, 0)


async def test_a_request_that_breaks_its_upstream_breaks_two_at_most() -> None:
    async with troublemaker([]) as one, troublemaker([]) as two, troublemaker([]) as three:
        async with running(one.url, two.url, three.url) as engine:
            _, answer = await called(engine, call())
    assert (answer.status, len(one.asked) + len(two.asked) + len(three.asked)) == (502, 2)


async def test_calls_are_shared_by_load() -> None:
    async with troublemaker([HANG]) as one, troublemaker([HANG]) as two, running(one.url, two.url, slots=3) as engine:
        assert engine.capacity().slots == 3
        runs = [asyncio.create_task(called(engine, call(task_id=f"t{n}"))) for n in range(6)]
        await wait_until(lambda: len(one.asked) == len(two.asked) == 3, "each has half")
        await broken_off(*runs)
        assert engine.capacity().running == 0
        await wait_until(lambda: one.left == two.left == 3, "closing a run closes its connection")


async def test_a_call_waits_inside_for_room_and_says_so() -> None:
    async with troublemaker([HANG], [reply(WHOLE)]) as upstream, running(upstream.url, of_each={"slots": 1}) as engine:
        first = asyncio.create_task(called(engine, call()))
        await wait_until(lambda: len(upstream.asked) == 1, "the first hangs")
        second = asyncio.create_task(called(engine, call(task_id="t2")))
        await wait_until(lambda: engine.capacity().waiting == 1, "the second waits")
        await broken_off(first)
        _, answer = await second
    assert (answer.status, engine.capacity().waiting) == (200, 0)


async def broken_off(*runs: asyncio.Task[Any]) -> None:
    for run in runs:
        run.cancel()
    await asyncio.wait(runs)


async def test_one_that_asks_to_be_left_alone_gets_nothing_and_offers_no_room() -> None:
    refusal = b'{"error":{"message":"slow down","type":"rate_limit_error","code":429}}'
    async with troublemaker([reply(refusal, 429, retry_after="30")], [reply(WHOLE)]) as upstream:
        async with running(upstream.url) as engine:
            _, answer = await called(engine, call())
            assert (answer.status, answer.retry_after_s, answer.body) == (429, 30, refusal)
            assert engine.capacity().slots == 0


async def test_one_that_fails_again_and_again_is_passed_over() -> None:
    async with troublemaker([reply(b"{}", 500)]) as bad, troublemaker([reply(WHOLE)]) as good:
        async with running(bad.url, good.url) as engine:
            for n in range(3 * FAILED_TASKS):
                _, answer = await called(engine, call(task_id=f"t{n}"))
                assert answer.status == 200
            assert engine.capacity().slots == 64
    assert len(bad.asked) == FAILED_TASKS


def test_a_lane_has_the_times_of_its_pool_but_for_its_own() -> None:
    options = OpenaiOptions(first_byte_s=20, lanes={Lane.BATCH: Patience(first_byte_s=900)})
    assert options.patience(Lane.NORMAL) == (5, 20, 60)
    assert options.patience(Lane.BATCH) == (5, 900, 60)


# -- a real one

ASKED: dict[str, dict[str, Any]] = {
    CHAT: {
        "messages": [{"role": "user", "content": "Name a river."}],
        "temperature": 0,
        "max_tokens": 8,
        "logprobs": True,
    },
    "/v1/completions": {"prompt": "One, two,", "temperature": 0, "max_tokens": 8},
    "/tokenize": {"prompt": "One, two,"},
    "/v1/embeddings": {"input": "not served by this model"},
}


def masked(body: bytes) -> bytes:
    return re.sub(rb'"(id|created)":("[^"]*"|\d+)', b"", body)


@pytest.mark.vllm
@pytest.mark.timeout(300)
async def test_vllms_own_server_answers_through_the_engine_as_it_does_without(tmp_path: Path) -> None:
    with vllm_server(tmp_path) as url:
        async with (
            running(f"{url}/v1", of_each={"model": MODEL}) as engine,
            httpx.AsyncClient(base_url=url, timeout=60) as direct,
        ):
            for route, asked in ASKED.items():
                expected = await direct.post(route, json={"model": MODEL, **asked})
                _, answer = await called(engine, call(route, msgspec.json.encode({"model": "m", **asked})))
                assert answer.status == expected.status_code
                assert masked(answer.body) == masked(expected.content) or answer.status == 404, route
            asked = {"model": "m", **ASKED[CHAT], "stream": True}
            chunks, end = await called(engine, call(body=msgspec.json.encode(asked)))
            text = "".join(
                msgspec.json.decode(chunk.data)["choices"][0]["delta"].get("content", "") for chunk in chunks
            )
            whole = await direct.post(CHAT, json={**asked, "model": MODEL, "stream": False})
            assert (end.status, text) == (200, whole.json()["choices"][0]["message"]["content"])
            assert (await called(engine, call(CHAT, b'{"model":"m"}')))[1].status == 400


@pytest.mark.parametrize("turns", range(4))
async def test_call_that_is_broken_off_in_the_moment_it_gets_room_is_not_made(turns: int) -> None:
    async with troublemaker([reply(WHOLE)]) as upstream, running(upstream.url, of_each={"slots": 1}) as engine:
        (only,) = engine._upstreams
        only.began("other")
        calling = asyncio.create_task(called(engine, call()))
        await wait_until(lambda: engine.capacity().waiting == 1, "it waits")
        only.left("other")
        engine._freed.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        calling.cancel()
        await asyncio.wait([calling])
        assert calling.cancelled()
        assert (engine.capacity().waiting, only.running) == (0, 0)
