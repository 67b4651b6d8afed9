"""What is no JSON in the python engine: forms, files that a body names, and files that a callable makes."""

import asyncio
import os
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from services.inference.engine import Answer, Call
from services.inference.engine_python import PythonEngine
from services.inference.python_files import MOST_FILES, NAMED
from services.inference.python_frames import LENGTH, Body, Broken, Fault, Value, file, read_frame
from services.inference.python_results import NAME_CHARS, bounded, fault_of, read_body, result
from shared.bus.client import Bus
from shared.engine_options import PythonOptions
from shared.files import PROCESSED, File, Files, new_file_id, upload_key
from shared.objects import Objects
from tests.support.engines import called
from tests.support.processes import children

FOLDER = str(Path(__file__).parent)
EDITS = "/v1/images/edits"
PNG = b"\x89PNG\r\n\x1a\n\x00\xff"

Make = Callable[..., Awaitable[PythonEngine]]


@pytest.fixture
async def make(no_task_left: None) -> AsyncIterator[Make]:
    before, engines = set(children(os.getpid())), []

    async def started(name: str, **options: Any) -> PythonEngine:
        patience_s = options.pop("patience_s", 60.0)
        chosen = PythonOptions(callable=f"engine_python_callables:{name}", path=FOLDER, **options)
        engines.append(PythonEngine(model="m", options=chosen, patience_s=patience_s))
        await engines[-1].start()
        return engines[-1]

    yield started
    for engine in engines:
        await engine.stop()
    assert set(children(os.getpid())) <= before


class Hanging(Objects):
    """Answers nothing any more, as a folder of a server that is gone."""

    async def put(self, key: str, data: bytes) -> None:
        await asyncio.Event().wait()

    async def size(self, key: str) -> int:
        await asyncio.Event().wait()
        return 0


@pytest.fixture
def files(bus: Bus, tmp_path: Path) -> Files:
    return Files(bus, Objects((tmp_path / "objects").as_uri()), kept_s=60)


async def upload(files: Files, data: bytes, *, tenant: str = "acme", name: str = "a.png") -> File:
    file_id = new_file_id()
    await files.objects.put(upload_key(file_id), data)
    return await files.create(
        tenant, name, "vision", file_id=file_id, status=PROCESSED, part=upload_key(file_id), size=len(data)
    )


def form(**parts: Any) -> tuple[bytes, str]:
    """A body as a client of the OpenAI API sends it, and its content type."""
    files = [(name, part) for name, part in parts.items() if isinstance(part, tuple)]
    request = httpx.Request(
        "POST", "http://m", files=files, data={k: v for k, v in parts.items() if isinstance(v, str)}
    )
    return request.read(), request.headers["content-type"]


def call(body: Any, files: Files | None = None, *, task: str = "t", tenant: str = "acme") -> Call:
    return Call(task_id=task, route=EDITS, body=msgspec.json.encode(body), priority=1, tenant=tenant, files=files)


def call_form(task: str = "t", **parts: Any) -> Call:
    body, content_type = form(**parts)
    return Call(task_id=task, route=EDITS, body=body, content_type=content_type, priority=1)


async def ask(engine: PythonEngine, asked: Call) -> tuple[int, Any]:
    _, answer = await called(engine, asked)
    return answer.status, msgspec.json.decode(answer.body)


def told(data: bytes, filename: str = "a.png", content_type: str = "image/png") -> dict[str, Any]:
    return {"filename": filename, "content_type": content_type, "data": list(data)}


# -- forms


@pytest.mark.parametrize("name", ["tell", "tell_async"])
async def test_a_form_is_a_dict_of_its_fields_and_files(make: Make, name: str) -> None:
    asked = call_form(prompt="größer", image=("a.png", PNG, "image/png"))
    assert await ask(await make(name), asked) == (200, {"prompt": "größer", "image": told(PNG)})


async def test_forms_and_json_run_together_in_a_batch(make: Make) -> None:
    engine = await make("tell_batch", batch_size=2, batch_wait_ms=60_000)
    asked = [call_form(image=("a.png", PNG)), call({"prompt": "x"}, task="t2")]
    answers = await asyncio.gather(*(ask(engine, each) for each in asked))
    assert answers == [(200, {"image": told(PNG)}), (200, {"prompt": "x"})]


async def test_a_form_that_is_none_is_refused_and_its_batch_goes_on(make: Make) -> None:
    engine = await make("tell_batch", batch_size=2, batch_wait_ms=60_000)
    body, content_type = form(image=("a.png", PNG))
    cut = Call(task_id="t", route=EDITS, body=body[:-9], content_type=content_type, priority=1)
    (status, refused), other = await asyncio.gather(ask(engine, cut), ask(engine, call({}, task="t2")))
    assert (status, refused["error"]["code"], other) == (400, "invalid_request", (200, {}))
    assert "ends before its last boundary" in refused["error"]["message"]


def read(parts: list[tuple[str, tuple[str | None, bytes]]]) -> Any:
    request = httpx.Request("POST", "http://m", files=parts)
    return read_body(Body(request.read(), request.headers["content-type"]))


def test_what_comes_twice_in_a_form_or_is_named_as_a_list_is_a_list() -> None:
    one, two = ("1.png", b"1"), ("2.png", b"2")
    assert read([("image[]", one)]) == {"image": [file("1.png", "image/png", b"1")]}
    both = [file("1.png", "image/png", b"1"), file("2.png", "image/png", b"2")]
    assert read([("image[]", one), ("image[]", two)]) == {"image": both}
    assert read([("image", one), ("image", two), ("n", (None, b"1"))]) == {"image": both, "n": "1"}


def test_a_field_of_a_form_that_is_no_text_is_refused_by_its_name() -> None:
    refused = read([("prompt", (None, b"\xff"))])
    assert isinstance(refused, Fault)
    assert refused.status == 400
    assert "'prompt' is not UTF-8" in refused.message


def test_the_type_of_a_file_is_what_the_form_says_else_what_its_name_says() -> None:
    assert file("a.bin", "image/png", b"").content_type == "image/png"
    assert file("a.png", "", b"").content_type == "image/png"
    assert file("a.webp", "", b"").content_type == "image/webp"
    assert file("a", "", b"").content_type == "application/octet-stream"


@pytest.mark.parametrize("said", ["png", "image/png\r\nSet-Cookie: a", "ima ge/png", "\ufffd/png"])
def test_what_a_callable_is_told_as_a_content_type_can_be_answered_with(said: str) -> None:
    assert file("a.png", said, b"").content_type == "image/png"
    spaced = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\nContent-Type: image/png \r\n\r\n\r\n--b--\r\n'
    assert read_body(Body(spaced, "multipart/form-data; boundary=b")) == {"a": file("a", "image/png", b"")}
    assert file("data:ima ge/png\r\n,a", said, b"").content_type == "application/octet-stream"
    assert isinstance(result((b"x", file("a", said, b"").content_type)), Value)


async def test_a_frame_that_is_longer_than_allowed_is_none() -> None:
    reader = asyncio.StreamReader()
    for data in (b"abc", b"abcd"):
        reader.feed_data(LENGTH.pack(len(data)) + data)
    assert [await read_frame(reader, limit_bytes=3), await read_frame(reader, limit_bytes=3)] == [b"abc", None]


async def test_json_that_says_so_is_no_form(make: Make) -> None:
    said = Call(task_id="t", route=EDITS, body=b'{"n": 1}', content_type="application/json", priority=1)
    assert await ask(await make("tell"), said) == (200, {"n": 1})


def test_a_file_is_described_without_its_data() -> None:
    assert repr(file("a.png", "", bytes(1000))) == "File('a.png', 'image/png', 1000 bytes)"


def test_json_that_is_too_deep_is_refused() -> None:
    refused = read_body(Body(b"[" * 100_000 + b"]" * 100_000))
    assert isinstance(refused, Fault)
    assert refused.status == 400


# -- files that a body names


def test_the_id_of_a_file_is_a_string_of_its_own_and_not_the_name_of_a_field() -> None:
    ids = [f"file-{number:032x}" for number in range(8)]
    body = {"a": ids[0], "list": [ids[1], {"deep": ids[2]}], ids[3]: 1, "said": f'it is "{ids[4]}"', "b": f"{ids[5]} "}
    text = msgspec.json.format(msgspec.json.encode([body, "\\", ids[6], f'"{ids[7]}']))
    assert [found[1].decode() for found in NAMED.finditer(text)] == [*ids[:3], ids[6]]


@pytest.mark.parametrize("name", ["tell", "tell_batch"])
async def test_a_body_is_freed_when_its_call_is_over(make: Make, name: str) -> None:
    """Items and jobs hold each other: many megabytes would wait for a collection of garbage, which counts objects, not bytes."""
    engine = await make(name, batch_size=1 if name == "tell" else 4)
    asked = call({"n": 1})
    held = sys.getrefcount(asked.body)
    assert await ask(engine, asked) == (200, {"n": 1})
    answered = sys.getrefcount(asked.body)
    waiting = asyncio.create_task(ask(engine, asked))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await ask(engine, call({"n": 2})) == (200, {"n": 2})
    cancelled = sys.getrefcount(asked.body)
    assert (answered, cancelled) == (held, held)


async def test_a_callable_gets_the_files_that_the_body_names_in_their_places(make: Make, files: Files) -> None:
    engine = await make("tell", files_mb=1)
    one, two = await upload(files, PNG), await upload(files, b"two", name="b.bin")
    body = {"image": one.id, "more": [{"url": two.id}, {"url": one.id}], one.id: 1, "text": f'see "{new_file_id()}'}
    second = told(b"two", "b.bin", "application/octet-stream")
    wanted = {**body, "image": told(PNG), "more": [{"url": second}, {"url": told(PNG)}]}
    assert await ask(engine, call(body, files)) == (200, wanted)


async def test_a_body_that_is_nothing_but_the_id_of_a_file_is_that_file(make: Make, files: Files) -> None:
    engine = await make("tell_batch", batch_size=8, files_mb=1)
    one = await upload(files, PNG)
    assert await ask(engine, call(one.id, files)) == (200, told(PNG))


async def test_without_the_option_ids_stay_ids(make: Make, files: Files) -> None:
    body = {"image": (await upload(files, PNG)).id}
    assert await ask(await make("tell"), call(body, files)) == (200, body)


async def test_a_file_that_cannot_be_had_is_an_error_of_the_task_that_names_it(make: Make, files: Files) -> None:
    engine = await make("tell_batch", batch_size=8, files_mb=1)
    others, large = await upload(files, PNG, tenant="other"), await upload(files, bytes(1_000_001))
    gone, fine = await upload(files, PNG), await upload(files, bytes(2))
    await files.delete(gone.id)
    lost = await upload(files, PNG)
    await files.objects.delete(upload_key(lost.id))
    many = [f"file-{number:032x}" for number in range(MOST_FILES + 1)]
    asked = [others.id, new_file_id(), gone.id, large.id, many, lost.id, fine.id]
    answers = await asyncio.gather(*(ask(engine, call(body, files, task=f"t{n}")) for n, body in enumerate(asked)))
    assert [status for status, _ in answers] == [404, 404, 404, 400, 400, 503, 200]
    codes = [body["error"]["code"] for status, body in answers if status != 200]
    assert codes == ["file_not_found"] * 3 + ["invalid_request"] * 2 + ["store_unavailable"]
    assert "1000001 bytes" in answers[3][1]["error"]["message"]


async def test_files_of_a_task_count_together(make: Make, files: Files) -> None:
    engine = await make("tell", files_mb=1)
    ids = [(await upload(files, bytes(400_000))).id for _ in range(3)]
    assert (await ask(engine, call(ids, files)))[0] == 400


async def test_without_a_store_a_body_that_names_a_file_is_refused(make: Make, bus: Bus) -> None:
    engine = await make("tell", files_mb=1)
    for nowhere in (None, Files(bus, None, kept_s=60)):
        status, refused = await ask(engine, call(new_file_id(), nowhere))
        assert (status, refused["error"]["code"]) == (501, "no_object_store")
        assert await ask(engine, call({"n": 1}, nowhere)) == (200, {"n": 1})


async def test_a_store_that_hangs_does_not_hold_a_call(make: Make, files: Files, bus: Bus, tmp_path: Path) -> None:
    engine = await make("reverse", files_mb=1, patience_s=0.01)
    given = await upload(files, PNG)
    hangs = Files(bus, Hanging((tmp_path / "objects").as_uri()), kept_s=60)
    reads = call({"image": given.id}, hangs)
    keeps = msgspec.structs.replace(call_form(image=("a.png", PNG)), files=hangs)
    for asked in (reads, keeps):
        status, refused = await ask(engine, asked)
        assert (status, refused["error"]["code"]) == (503, "store_unavailable")


async def test_a_call_that_ends_while_its_files_are_read_leaves_nothing(make: Make, files: Files) -> None:
    engine = await make("tell", files_mb=1)
    asked = asyncio.create_task(ask(engine, call((await upload(files, PNG)).id, files)))
    await asyncio.sleep(0)
    assert engine.capacity().running == 1
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert engine.capacity().running == 0


# -- files that a callable makes


async def content(files: Files, file_id: str) -> bytes:
    return b"".join([piece async for piece in files.read(file_id)])


@pytest.mark.parametrize(("name", "size"), [("reverse", 1), ("reverse_batch", 2)])
async def test_bytes_with_a_name_are_kept_as_a_file_of_the_tenant(
    make: Make, files: Files, name: str, size: int
) -> None:
    engine = await make(name, batch_size=size, files_mb=1)
    given = await upload(files, PNG)
    status, made = await ask(engine, call({"image": given.id}, files))
    record = await files.get(made["id"])
    assert (status, await content(files, made["id"])) == (200, PNG[::-1])
    assert (record.tenant, record.filename, record.status) == ("acme", "reversed a.png", "processed")
    assert made == {
        "object": "file",
        "id": record.id,
        "bytes": len(PNG),
        "filename": "reversed a.png",
        "content_type": "image/png",
        "created_at": record.created_at_ms // 1000,
        "expires_at": record.expires_at_ms // 1000,
    }


async def test_a_task_that_is_run_again_makes_the_same_file_and_another_task_another(make: Make, files: Files) -> None:
    engine = await make("reverse", files_mb=1)
    body = {"image": (await upload(files, PNG)).id}
    first, again = await ask(engine, call(body, files)), await ask(engine, call(body, files))
    other = await ask(engine, call(body, files, task="other"))
    elses = call_form(image=("a.png", PNG))
    elses = msgspec.structs.replace(elses, tenant="other", files=files)
    assert first == again
    assert len({made["id"] for _, made in (first, other, await ask(engine, elses))}) == 3
    assert len(await files.list("acme")) == 3


async def test_a_file_that_cannot_be_kept_is_an_error_that_is_tried_again(
    make: Make, files: Files, bus: Bus, tmp_path: Path
) -> None:
    engine = await make("reverse", files_mb=1)
    body = {"image": (await upload(files, PNG)).id}
    (tmp_path / "objects" / "files").rename(tmp_path / "away")
    (tmp_path / "objects" / "files").touch()  # where a folder must be
    status, refused = await ask(engine, call(body, files))
    assert (status, refused["error"]["code"]) == (503, "store_unavailable")
    nowhere = call_form(image=("a.png", PNG))
    status, refused = await ask(engine, nowhere)
    assert (status, refused["error"]["code"]) == (501, "no_object_store")


@pytest.mark.parametrize("name", ["much", "much_async"])
async def test_a_large_answer_is_held_by_nobody_until_the_next(make: Make, name: str) -> None:
    engine = await make(name)
    await ask(engine, call({}))
    tracemalloc.start()
    try:
        await called(engine, call({"bytes": 10_000_000, "pad": "x" * 10_000_000}))
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    _, told = await ask(engine, call({}))
    assert max(held, told["held"]) < 5_000_000


def test_a_file_without_a_name_or_without_a_byte_is_a_fault_of_the_callable() -> None:
    assert isinstance(result((b"x", "image/png", "")), Fault)
    assert isinstance(result((b"", "image/png", "a.png")), Fault)


@pytest.mark.parametrize(
    ("name", "kept"), [("a\r\nb", "a__b"), ("\ud800.png", "_.png"), ("x" * (NAME_CHARS + 1), "x" * NAME_CHARS)]
)
def test_what_a_client_calls_its_file_makes_no_result_wrong(name: str, kept: str) -> None:
    assert result((b"x", "image/png", name)) == Value(b"x", "image/png", kept)


def test_an_error_whose_words_are_no_text_can_be_passed_on() -> None:
    assert bounded(Broken(1, fault_of(ValueError("name \ud800")))).endswith(b"name ?\xafinvalid_request")


async def test_bytes_without_a_name_are_the_answer_itself(make: Make) -> None:
    _, answer = await called(await make("act"), call({"do": "image"}))
    assert answer == Answer(status=200, body=b"\x89PNG", content_type="image/png")


def test_bytes_within_json_are_base64() -> None:
    made = result({"data": [{"b64_json": PNG}]})
    assert not isinstance(made, Fault)
    assert msgspec.json.decode(made.body, type=dict[str, list[dict[str, bytes]]])["data"][0]["b64_json"] == PNG
