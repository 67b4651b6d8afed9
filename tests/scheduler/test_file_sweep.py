"""Files that are to go, and those that were begun and left: what becomes of them follows from what is there."""

import os
from pathlib import Path

import pytest

from services.scheduler.file_sweep import PAGE, FileSweep
from shared import keys
from shared.bus.client import Bus
from shared.clock import now_ms
from shared.files import Files, mark, new_file_id, upload_key
from shared.objects import Objects
from tests.shared.test_files import stored, uploaded


@pytest.fixture
def files(bus: Bus, tmp_path: Path) -> Files:
    return Files(bus, Objects((tmp_path / "objects").as_uri()), 3600)


async def expired(bus: Bus, file_id: str) -> None:
    await mark(bus, file_id, {"expires_at_ms": now_ms() - 1})
    await bus.commands.call("ZADD", keys.FILES, now_ms() - 1, file_id)


async def test_files_that_have_expired_are_removed_and_others_stay(bus: Bus, files: Files) -> None:
    kept = await uploaded(files, b"x")
    for _ in range(PAGE + 1):
        await expired(bus, (await uploaded(files, b"x")).id)
    await FileSweep(bus, files).look()
    assert await stored(files.objects) == [upload_key(kept.id)]
    assert await files.list("acme") == [kept]
    assert await bus.commands.call("ZRANGE", keys.FILES, 0, -1) == [kept.id.encode()]


async def test_the_content_of_an_upload_that_never_became_a_file_is_removed(bus: Bus, files: Files) -> None:
    file_id = new_file_id()
    await files.begin(file_id)
    await files.objects.put(upload_key(file_id), b"x")
    sweep = FileSweep(bus, files)
    await sweep.look()
    assert await stored(files.objects) == [upload_key(file_id)]  # it may still become one
    await bus.commands.call("ZADD", keys.FILES, now_ms() - 1, file_id)
    await sweep.look()
    assert await stored(files.objects) == []
    assert await bus.commands.call("KEYS", "*") == []


async def test_a_file_whose_maker_died_before_it_was_listed_is_listed(bus: Bus, files: Files) -> None:
    file = await uploaded(files, b"x")
    await bus.commands.call("DEL", keys.files_of("acme"))
    await bus.commands.call("ZADD", keys.FILES, now_ms() - 1, file.id)
    await FileSweep(bus, files).look()
    assert await files.list("acme") == [file]
    assert float(await bus.commands.call("ZSCORE", keys.FILES, file.id)) == file.expires_at_ms


async def test_a_store_out_of_reach_makes_it_wait(bus: Bus, files: Files, tmp_path: Path) -> None:
    file = await uploaded(files, b"x")
    await expired(bus, file.id)
    (tmp_path / "objects").rename(tmp_path / "away")
    (tmp_path / "objects").write_bytes(b"no folder")
    sweep = FileSweep(bus, files)
    await sweep.look()
    assert await bus.commands.call("ZCARD", keys.FILES) == 1
    (tmp_path / "objects").unlink()
    (tmp_path / "away").rename(tmp_path / "objects")
    await sweep.look()
    assert await stored(files.objects) == []
    assert await bus.commands.call("ZCARD", keys.FILES) == 0


async def test_what_killed_writers_left_is_removed_when_it_is_old(bus: Bus, files: Files, tmp_path: Path) -> None:
    left = tmp_path / "objects" / "a#1"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    await FileSweep(bus, files).look()
    assert not left.exists()
