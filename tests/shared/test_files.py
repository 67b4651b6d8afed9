"""Files: their records, their content in parts, and what is left when somebody stops in between."""

from pathlib import Path

import pytest

from shared import keys
from shared.bus.client import Bus
from shared.errors import FileNotFound, HeadraceError, NoObjectStore, StoreUnavailable
from shared.files import PARTS_READ, PROCESSED, UPLOADED, File, Files, append, mark, new_file_id, upload_key
from shared.objects import Objects


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects((tmp_path / "objects").as_uri())


@pytest.fixture
def files(bus: Bus, objects: Objects) -> Files:
    return Files(bus, objects, 3600)


async def uploaded(files: Files, data: bytes, *, tenant: str = "acme", purpose: str = "batch") -> File:
    file_id = new_file_id()
    await files.begin(file_id)
    await files.objects.put(upload_key(file_id), data)
    return await files.create(
        tenant, "in.jsonl", purpose, file_id=file_id, part=upload_key(file_id), size=len(data), status=PROCESSED
    )


async def content(files: Files, file_id: str, start: int = 0) -> bytes:
    return b"".join([piece async for piece in files.read(file_id, start)])


async def stored(objects: Objects) -> list[str]:
    return sorted([key async for key in objects.list("")])


async def test_an_upload_is_found_read_and_deleted_without_a_trace(bus: Bus, files: Files, objects: Objects) -> None:
    file = await uploaded(files, b"hello")
    assert await files.get(file.id) == file
    assert await content(files, file.id) == b"hello"
    assert await content(files, file.id, 3) == b"lo"
    assert await content(files, file.id, 5) == b""
    await files.delete(file.id)
    with pytest.raises(FileNotFound, match=file.id):
        await files.get(file.id)
    with pytest.raises(FileNotFound):
        await files.delete(file.id)
    assert await bus.commands.call("KEYS", "*") == []
    assert await stored(objects) == []


async def test_an_empty_upload_is_a_file_too(bus: Bus, files: Files, objects: Objects) -> None:
    file = await uploaded(files, b"")
    assert (file.bytes, await content(files, file.id)) == (0, b"")
    await files.delete(file.id)
    assert await stored(objects) == []
    assert await bus.commands.call("KEYS", "*") == []


async def test_a_file_is_read_while_it_grows(files: Files, objects: Objects) -> None:
    """Of more parts than are looked up at once, and from each place of it."""
    file = await files.create("acme", "out.jsonl", "batch_output")
    assert (file.status, file.bytes, await content(files, file.id)) == (UPLOADED, 0, b"")
    whole = b""
    for number in range(2 * PARTS_READ + 1):
        part = b"%d\n" % number
        await objects.put(f"b/{number}", part)
        await files.append_part(file.id, f"b/{number}", len(part), 1)
        whole += part
    assert await content(files, file.id) == whole
    for start in (1, 2, 3, len(whole) // 2, len(whole) - 1, len(whole)):
        assert await content(files, file.id, start) == whole[start:]
    await files.finish(file.id)
    made = await files.get(file.id)
    assert (made.status, made.bytes, made.lines) == (PROCESSED, len(whole), 2 * PARTS_READ + 1)
    await files.delete(file.id)
    assert await stored(objects) == []


async def test_a_given_id_is_made_once(files: Files) -> None:
    file_id = new_file_id()
    first = await files.create("acme", "out.jsonl", "batch_output", file_id=file_id)
    await append(files._bus, file_id, "b/1", 5, 1)
    again = await files.create("acme", "other", "batch_output", file_id=file_id)
    assert (again.filename, again.created_at_ms, again.bytes) == ("out.jsonl", first.created_at_ms, 5)
    assert await files.list("acme") == [again]


async def test_files_are_listed_by_age_in_pages(files: Files) -> None:
    made = [await uploaded(files, b"x", purpose=purpose) for purpose in ("batch", "vision", "batch", "batch")]
    await uploaded(files, b"x", tenant="other")
    for number, file in enumerate(made):  # those of one millisecond have no order of age
        await files._bus.commands.call("ZADD", keys.files_of("acme"), number, file.id)
    newest = [file.id for file in reversed(made)]
    assert [file.id for file in await files.list("acme")] == newest
    assert [file.id for file in await files.list("acme", newest_first=False)] == newest[::-1]
    assert [file.id for file in await files.list("acme", limit=2)] == newest[:2]
    assert [file.id for file in await files.list("acme", limit=2, after=newest[1])] == newest[2:]
    assert [file.id for file in await files.list("acme", limit=2, purpose="vision")] == [made[1].id]
    with pytest.raises(FileNotFound):
        await files.list("acme", after=new_file_id())


async def test_a_file_that_has_expired_is_gone_for_everybody(files: Files) -> None:
    file = await uploaded(files, b"x")
    await mark(files._bus, file.id, {"expires_at_ms": 1})
    for call in (files.get(file.id), content(files, file.id), files.delete(file.id)):
        with pytest.raises(FileNotFound):
            await call
    assert await files.list("acme") == []


@pytest.mark.parametrize("file_id", ["", "x", "file-1", f"file-{'0' * 33}", "file-../../../etc/passwd/etc/passwd000"])
async def test_what_is_no_id_of_a_file_is_not_found(files: Files, file_id: str) -> None:
    with pytest.raises(FileNotFound):
        await files.get(file_id)


async def test_a_part_for_a_file_that_is_gone_is_refused(files: Files) -> None:
    with pytest.raises(FileNotFound):
        await files.append_part(new_file_id(), "b/1", 5)
    with pytest.raises(FileNotFound):
        await files.finish(new_file_id())


async def test_a_delete_that_the_store_refuses_hides_the_file_and_leaves_the_rest_to_the_sweep(
    bus: Bus, files: Files, objects: Objects, tmp_path: Path
) -> None:
    file = await uploaded(files, b"x")
    (tmp_path / "objects").rename(tmp_path / "away")
    (tmp_path / "objects").write_bytes(b"no folder")
    with pytest.raises(StoreUnavailable):
        await files.delete(file.id)
    with pytest.raises(FileNotFound):
        await files.get(file.id)
    assert float(await bus.commands.call("ZSCORE", keys.FILES, file.id)) == 1


async def test_without_a_store_the_variable_is_named(bus: Bus) -> None:
    files = Files(bus, None, 3600)
    file = await files.create("acme", "out", "batch_output")
    with pytest.raises(NoObjectStore, match="HEADRACE_OBJECTS"):
        await files.delete(file.id)
    assert await files.get(file.id) == file


async def test_a_record_that_is_not_ours_is_told(files: Files) -> None:
    file_id = new_file_id()
    await files._bus.commands.call("HSET", keys.file(file_id), "tenant", "acme")
    with pytest.raises(HeadraceError, match=file_id):
        await files.get(file_id)
