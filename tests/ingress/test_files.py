"""Files over HTTP: what is asked, what is refused, and whose they are."""

import resource
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingress.app import build
from services.ingress.attendance import Attendance
from services.ingress.files import span
from services.ingress.settings import Settings
from shared.bus.client import Bus
from shared.bus.tail import Tails
from shared.cancel import Canceller
from shared.config import Config, Limits
from shared.files import Files, append, upload_key
from shared.objects import Objects
from shared.payer import digest_of
from shared.policy import Key, Live, Policy
from tests.support import tasks

LIMITS = Limits(file_bytes=100_000, body_bytes=1024)
KEYS = {name: Key(tenant=name, sha256=digest_of(f"key-of-{name}")) for name in ("acme", "other")}
DATA = b'{"custom_id": "a"}\n{"custom_id": "b"}\n'


def door(bus: Bus, folder: Path | None, policy: Policy) -> httpx.AsyncClient:
    config = Config(pools=tasks.CONFIG.pools, limits=LIMITS, live=Live(policy))
    settings = Settings(objects_url=(folder / "objects").as_uri() if folder else "")
    app = build(bus, config, settings, Tails([]), Attendance(bus, Canceller(bus, config)))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ingress")


@pytest.fixture
async def http(bus: Bus, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with door(bus, tmp_path, Policy()) as client:
        yield client


async def upload(http: httpx.AsyncClient, data: bytes = DATA, purpose: str = "batch", **fields: str) -> httpx.Response:
    return await http.post("/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": purpose, **fields})


async def test_an_upload_is_answered_listed_read_and_deleted(http: httpx.AsyncClient, bus: Bus, tmp_path: Path) -> None:
    made = (await upload(http)).json()
    assert {name: made[name] for name in ("object", "bytes", "filename", "purpose", "status", "lines")} == {
        "object": "file",
        "bytes": len(DATA),
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "processed",
        "lines": 2,
    }
    assert made["expires_at"] == made["created_at"] + LIMITS.files_kept_s
    assert (await http.get(f"/v1/files/{made['id']}")).json() == made
    listed = (await http.get("/v1/files")).json()
    assert listed == {
        "object": "list",
        "data": [made],
        "first_id": made["id"],
        "last_id": made["id"],
        "has_more": False,
    }
    content = await http.get(f"/v1/files/{made['id']}/content")
    assert (content.content, content.headers["content-length"]) == (DATA, str(len(DATA)))
    assert content.headers["content-disposition"] == "attachment; filename*=UTF-8''in.jsonl"
    gone = (await http.delete(f"/v1/files/{made['id']}")).json()
    assert gone == {"id": made["id"], "object": "file", "deleted": True}
    for call in (http.get(f"/v1/files/{made['id']}"), http.delete(f"/v1/files/{made['id']}")):
        answer = await call
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")
    assert await bus.commands.call("KEYS", "*") == []
    assert [path for path in (tmp_path / "objects").rglob("*") if path.is_file()] == []


async def test_an_idempotency_key_is_refused_since_it_would_not_be_heeded(http: httpx.AsyncClient, bus: Bus) -> None:
    form = {"file": ("in.jsonl", DATA)}
    answer = await http.post("/v1/files", files=form, data={"purpose": "batch"}, headers={"idempotency-key": "k"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert await bus.commands.call("KEYS", "*") == []


async def test_pages_go_in_both_orders_and_by_purpose(http: httpx.AsyncClient) -> None:
    ids = [(await upload(http, purpose=purpose)).json()["id"] for purpose in ("batch", "vision", "batch")]
    first = (await http.get("/v1/files", params={"limit": 2, "order": "asc"})).json()
    rest = (await http.get("/v1/files", params={"limit": 2, "order": "asc", "after": first["last_id"]})).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert {file["id"] for page in (first, rest) for file in page["data"]} == set(ids)
    backwards = [file["id"] for file in (await http.get("/v1/files")).json()["data"]]
    assert backwards == [file["id"] for page in (rest, first) for file in reversed(page["data"])]
    seen = (await http.get("/v1/files", params={"purpose": "vision"})).json()
    assert [file["id"] for file in seen["data"]] == [ids[1]]


async def test_no_file_makes_an_empty_list(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/files")).json()
    assert listed == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"limit": "0"}, "`limit` is '0'; allowed: 1 to 10000"),
        ({"limit": "²"}, "`limit` is '²'; allowed: 1 to 10000"),
        ({"limit": "1" * 5000}, "allowed: 1 to 10000"),
        ({"order": "up"}, "`order` is 'up'; allowed: asc, desc"),
        ({"page": "1"}, "The parameter `page` is unknown"),
    ],
)
async def test_a_wrong_parameter_of_the_list_is_named(
    http: httpx.AsyncClient, asked: dict[str, str], told: str
) -> None:
    answer = await http.get("/v1/files", params=asked)
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"purpose": "fun"}, "`purpose` is 'fun'; allowed: assistants, batch"),
        ({"purpose": "batch", "colour": "red"}, "The field `colour` is unknown"),
        ({"purpose": "batch", "expires_after[seconds]": "60"}, "allowed: 3600 to 2592000"),
        ({"purpose": "batch", "expires_after[seconds]": "soon"}, "allowed: 3600 to 2592000"),
        ({"purpose": "batch", "expires_after[anchor]": "now"}, "allowed: created_at"),
    ],
)
@pytest.mark.parametrize("first", ["fields", "file"])
async def test_a_wrong_field_is_named_and_nothing_is_left(
    http: httpx.AsyncClient, bus: Bus, tmp_path: Path, fields: dict[str, str], told: str, first: str
) -> None:
    """Whether it came before the file or behind it, when all of that was stored."""
    parts = [(name, (None, value)) for name, value in fields.items()]
    parts.insert(len(parts) if first == "fields" else 0, ("file", ("in.jsonl", DATA)))  # type: ignore[arg-type]
    answer = await http.post("/v1/files", files=parts)
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]
    assert await bus.commands.call("KEYS", "*") == []
    assert [path for path in (tmp_path / "objects").rglob("*") if path.is_file()] == []


async def test_a_purpose_is_required(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/files", files={"file": ("in.jsonl", DATA)})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "purpose")


async def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(http: httpx.AsyncClient, bus: Bus) -> None:
    answer = await upload(http, b"x" * (LIMITS.file_bytes + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "file_too_large")
    assert await bus.commands.call("KEYS", "*") == []
    assert (await upload(http, b"x" * LIMITS.file_bytes)).status_code == 200


async def test_a_broken_file_is_accepted_and_its_lines_are_told(http: httpx.AsyncClient) -> None:
    """The batch ends them one by one, and runs the others."""
    made = (await upload(http, DATA + b"{\n\nnot json\n")).json()
    assert made["lines"] == 4
    assert made["status_details"].startswith("2 of 4 lines will fail: line 3: ")
    assert "line 5: " in made["status_details"]


async def test_lines_of_other_purposes_are_nobodys_business(http: httpx.AsyncClient) -> None:
    made = (await upload(http, b"\x00\n\n", purpose="user_data")).json()
    assert "lines" not in made
    assert "status_details" not in made


async def test_it_expires_when_it_says(http: httpx.AsyncClient) -> None:
    asked = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "7200"}
    made = (await upload(http, DATA, **asked)).json()
    assert made["expires_at"] == made["created_at"] + 7200


async def test_a_name_is_only_a_name(http: httpx.AsyncClient) -> None:
    name = '../../etc/ä "x"\r\nx-evil: 1'
    made = (await http.post("/v1/files", files={"file": (name, DATA)}, data={"purpose": "batch"})).json()
    content = await http.get(f"/v1/files/{made['id']}/content")
    assert "x-evil" not in content.headers
    assert content.content == DATA


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-4", 206, 0, 5),
        ("bytes=5-", 206, 5, None),
        ("bytes=-4", 206, -4, None),
        ("bytes=5-9999", 206, 5, None),
        ("bytes=0-", 200, 0, None),
        ("bytes=0-1,4-5", 200, 0, None),
        ("lines=1-2", 200, 0, None),
    ],
)
async def test_a_range_is_answered_with_that_part(
    http: httpx.AsyncClient, asked: str, status: int, start: int, end: int | None
) -> None:
    made = (await upload(http)).json()
    answer = await http.get(f"/v1/files/{made['id']}/content", headers={"range": asked})
    assert (answer.status_code, answer.content) == (status, DATA[start:end])
    assert ("content-range" in answer.headers) == (status == 206)


async def test_a_range_behind_the_end_tells_the_size(http: httpx.AsyncClient) -> None:
    made = (await upload(http)).json()
    answer = await http.get(f"/v1/files/{made['id']}/content", headers={"range": f"bytes={len(DATA)}-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(DATA)}")


@given(st.binary(max_size=20), st.integers(0, 100))
def test_no_header_makes_a_range_beyond_the_file(text: bytes, size: int) -> None:
    start, end = span("bytes=" + text.decode("latin-1"), size)
    assert start >= 0
    assert end <= size


@pytest.mark.parametrize("asked", ["bytes=-{}", "bytes={}-", "bytes=0-{}"])
def test_a_number_that_no_file_could_have_makes_no_range(asked: str) -> None:
    assert span(asked.format("9" * 5000), 10) == (0, 10)


async def test_a_file_that_grows_is_read_as_far_as_it_is(http: httpx.AsyncClient, bus: Bus, tmp_path: Path) -> None:
    objects = Objects((tmp_path / "objects").as_uri())
    file = await Files(bus, objects, 3600).create("default", "out.jsonl", "batch_output")
    assert (await http.get(f"/v1/files/{file.id}/content")).content == b""
    for number in range(3):
        await objects.put(f"b/{number}", b"%d\n" % number)
        await append(bus, file.id, f"b/{number}", 2, 1)
        assert (await http.get(f"/v1/files/{file.id}/content")).content == b"0\n1\n2\n"[: 2 * number + 2]
    view = (await http.get(f"/v1/files/{file.id}")).json()
    assert (view["status"], view["bytes"], view["lines"], view["purpose"]) == ("uploaded", 6, 3, "batch_output")


async def test_files_of_others_do_not_exist(bus: Bus, tmp_path: Path) -> None:
    async with door(bus, tmp_path, Policy(keys=KEYS)) as http:
        acme, other = ({"authorization": f"Bearer key-of-{name}"} for name in ("acme", "other"))
        answer = await http.post("/v1/files", files={"file": ("a", DATA)}, data={"purpose": "batch"}, headers=acme)
        url = f"/v1/files/{answer.json()['id']}"
        for method, path in (("GET", url), ("GET", f"{url}/content"), ("DELETE", url)):
            assert (await http.request(method, path, headers=other)).status_code == 404
        assert (await http.get("/v1/files", headers=other)).json()["data"] == []
        assert (await http.get(url, headers=acme)).status_code == 200
        assert (await http.get(url)).status_code == 401
        assert (await http.post("/v1/files", files={"file": ("a", DATA)})).status_code == 401


async def test_without_a_store_the_variable_is_named(bus: Bus) -> None:
    async with door(bus, None, Policy()) as http:
        answer = await upload(http)
        assert (answer.status_code, answer.json()["error"]["code"]) == (501, "no_object_store")
        assert "HEADRACE_OBJECTS" in answer.json()["error"]["message"]
        assert (await http.get("/v1/files")).json()["data"] == []


async def test_a_store_out_of_reach_is_a_503_that_tells_no_secret(http: httpx.AsyncClient, tmp_path: Path) -> None:
    made = (await upload(http)).json()
    (tmp_path / "objects").rename(tmp_path / "away")
    (tmp_path / "objects").write_bytes(b"no folder")
    for answer in (await upload(http), await http.get(f"/v1/files/{made['id']}/content")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert str(tmp_path) not in answer.text


async def test_an_upload_to_a_full_disk_is_a_503_that_leaves_nothing(
    http: httpx.AsyncClient, bus: Bus, tmp_path: Path
) -> None:
    """The limit of the process stands for the disk: the write fails in the same place of the library."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMITS.file_bytes // 2, before[1]))
    try:
        answer = await upload(http, b"x" * LIMITS.file_bytes)
        small = await upload(http)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert small.status_code == 200
    await http.delete(f"/v1/files/{small.json()['id']}")
    assert await bus.commands.call("KEYS", "*") == []
    assert [path for path in (tmp_path / "objects").rglob("*") if path.is_file()] == []


async def test_content_that_was_taken_from_the_store_is_told(http: httpx.AsyncClient, tmp_path: Path) -> None:
    made = (await upload(http)).json()
    (tmp_path / "objects" / upload_key(made["id"])).unlink()
    answer = await http.get(f"/v1/files/{made['id']}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "object_missing")
