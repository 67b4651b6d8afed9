"""Images of examples/images: through the API, as a batch of files, through the stream door; broken ones and bombs among them."""

import base64
import contextlib
import importlib.util
import io
import json
import os
import signal
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import redis
from PIL import Image, ImageDraw, ImageFilter

from tests.architecture.sources import ROOT
from tests.examples.programs import python
from tests.support.deployment import Deployment, deployment
from tests.support.waiting import wait_blocking

EXAMPLE = ROOT / "examples" / "images"
PICTURES = 8
EVENING, DAY = (1.0, 0.85, 0.6), (0.9, 1.0, 1.1)
"""The light in the synthetic pictures. That of the evening makes everything look like skin."""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    config = (EXAMPLE / "headrace.toml").read_text() + "\n[limits]\nlease_s = 2.0\n"
    with deployment(tmp_path_factory.mktemp("studio"), config=config) as deployed:
        yield deployed


@pytest.fixture(scope="module")
def client(studio: Deployment) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{studio.http}/v1", api_key="none", max_retries=0, timeout=90) as made:
        yield made


@pytest.fixture(scope="module")
def beautify() -> Iterator[ModuleType]:
    """The module, in this process: what the callable must answer, byte for byte."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        spec = importlib.util.spec_from_file_location("beautify_example", EXAMPLE / "beautify.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(EXAMPLE))
        sys.modules.pop("pictures", None)


# -- synthetic pictures


def scene(
    seed: int = 0, size: tuple[int, int] = (320, 240), *, noise: float = 12.0, light: tuple[float, ...] = EVENING
) -> Image.Image:
    """Shapes in a narrow range of tones, with noise. The left quarter is flat and darker, the right one flat and brighter."""
    chance = np.random.default_rng(seed)
    image = Image.new("RGB", size, (120, 120, 120))
    draw = ImageDraw.Draw(image)
    for _ in range(30):
        x, y, r = chance.integers(0, size[0]), chance.integers(0, size[1]), chance.integers(5, 30)
        tone = tuple(int(each) for each in chance.integers(90, 160, 3))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tone)
    draw.rectangle((0, 0, size[0] // 4, size[1]), fill=(90, 90, 90))
    draw.rectangle((3 * size[0] // 4, 0, size[0], size[1]), fill=(160, 160, 160))
    pixels = np.asarray(image, np.float32) * np.array(light) + chance.normal(0, noise, (size[1], size[0], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def bomb(side: int = 50_000) -> bytes:
    """A PNG of some bytes that says of itself to have so many pixels a side."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(bytes(100))) + part(b"IEND", b"")


def patches(image: Image.Image) -> tuple[Any, Any]:
    """The two flat quarters, away from their edges."""
    pixels, width = np.asarray(image, np.float32), image.width
    return pixels[:, 8 : width // 4 - 8], pixels[:, 3 * width // 4 + 8 : width - 8]


def noise_of(image: Image.Image) -> float:
    return float(np.mean([patch.std(axis=(0, 1)).mean() for patch in patches(image)]))


def contrast_of(image: Image.Image) -> float:
    dark, bright = patches(image)
    return float(bright.mean() - dark.mean())


def tint_of(image: Image.Image) -> float:
    """How much more red than blue there is."""
    return float(np.mean([patch[..., 0].mean() - patch[..., 2].mean() for patch in patches(image)]))


def edited(client: openai.OpenAI, data: bytes, prompt: str, **more: Any) -> Image.Image:
    answer = client.images.edit(model="beautify", image=("a.png", data), prompt=prompt, **more)
    assert answer.data is not None
    made = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
    made.load()
    return made


def as_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


# -- one at a time, through the API


def test_a_picture_is_measurably_better_afterwards(client: openai.OpenAI) -> None:
    before = scene()
    after = edited(client, png(before), "beautify")
    assert after.size == before.size
    assert contrast_of(after) > 1.8 * contrast_of(before)
    assert abs(tint_of(after)) < 0.3 * abs(tint_of(before))
    assert contrast_of(after) / noise_of(after) > 1.5 * contrast_of(before) / noise_of(before)


def test_a_prompt_may_name_single_steps(client: openai.OpenAI) -> None:
    before = scene()
    after = edited(client, png(before), "denoise")
    assert noise_of(after) < 0.6 * noise_of(before)
    assert contrast_of(after) == pytest.approx(contrast_of(before), abs=2)


def test_a_picture_comes_in_the_size_and_format_that_were_asked_for(client: openai.OpenAI) -> None:
    made = edited(client, png(scene()), "sharpen", size="128x128", output_format="jpeg")
    assert (made.format, made.size) == ("JPEG", (128, 96))


REFUSED = [
    (b"GIF89a", {}, "cannot be read as JPEG, PNG, WEBP"),
    (png(scene())[:3000], {}, "cannot be read"),
    (bomb(), {}, "more than 24000000 pixels"),
    (png(scene()), {"prompt": "a cat"}, "it knows the words beautify, balance, denoise, contrast, sharpen"),
    (png(scene()), {"size": "64x32"}, "size is '64x32'"),
    (png(scene()), {"quality": "high"}, "unknown fields: quality"),
    (png(scene()), {"extra_body": {"images": "x"}}, "there are image and images"),
]


@pytest.mark.parametrize(("data", "more", "words"), REFUSED, ids=[words for *_, words in REFUSED])
def test_what_cannot_be_made_beautiful_is_refused_with_its_reason(
    client: openai.OpenAI, data: bytes, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        edited(client, data, **({"prompt": "beautify"} | more))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_looked_at_on_white(beautify: ModuleType, mode: str) -> None:
    out = io.BytesIO()
    Image.new(mode, (2, 2)).save(out, "PNG", **({"transparency": 0} if mode == "P" else {}))
    seen = beautify.picture("data:image/png;base64," + base64.b64encode(out.getvalue()).decode())
    assert (seen.mode, seen.getpixel((0, 0))) == ("RGB", (255, 255, 255))


NO_IMAGES = [5, "x", {"a": 1}, [], [[]], [{}], [{"file_id": 5}]]


@pytest.mark.parametrize("images", NO_IMAGES, ids=str)
def test_what_is_no_image_in_json_is_the_clients_error(beautify: ModuleType, images: Any) -> None:
    (refused,) = beautify.beautify([{"model": "beautify", "images": images}])
    assert isinstance(refused, ValueError)


def test_an_image_in_json_may_be_a_data_url(beautify: ModuleType) -> None:
    parts = [{"image_url": as_url(scene())}]
    (made,) = beautify.beautify([{"images": parts, "prompt": "sharpen"}])
    assert made["data"][0]["b64_json"] == beautify.encoded(beautify.sharpen(scene()), "png")


def test_the_longest_name_of_a_file_makes_no_name_that_is_too_long(client: openai.OpenAI) -> None:
    answer = client.images.edit(
        model="beautify", image=("a" * 251 + ".png", png(scene())), prompt="sharpen", extra_body={"answer": "file"}
    )
    assert answer.model_extra is not None
    assert answer.model_extra["filename"] == "a" * 200 + "-beautiful.png"


def test_two_megabytes_go_through_unchanged_and_not_through_redis(
    studio: Deployment, client: openai.OpenAI, beautify: ModuleType
) -> None:
    large = scene(size=(1000, 760), noise=40)
    assert len(png(large)) > 2_000_000
    answer = client.images.with_raw_response.edit(model="beautify", image=("a.png", png(large)), prompt="sharpen")
    made = answer.parse().data
    assert made is not None
    assert base64.b64decode(made[0].b64_json or "") == beautify.encoded(beautify.sharpen(large), "png")
    with redis.Redis.from_url(studio.redis) as bus:
        held = bus.memory_usage(f"hr:{{beautify.0}}:task:{answer.headers['x-headrace-task']}")
    assert held is not None
    assert held < 100_000


# -- moderation


def checked(client: openai.OpenAI, *images: Image.Image) -> list[dict[str, Any]]:
    parts: Any = [{"type": "image_url", "image_url": {"url": as_url(image)}} for image in images]
    return [
        result.model_dump(exclude_unset=True)
        for result in client.moderations.create(model="moderate", input=parts).results
    ]


def found(result: dict[str, Any]) -> set[str]:
    categories = result["categories"]
    return {name for name, said in categories.items() if said}


def test_each_check_finds_what_it_is_for(client: openai.OpenAI) -> None:
    fine = scene(noise=6, light=DAY)
    dark = Image.fromarray((np.asarray(fine) * 0.12).astype(np.uint8))
    arm = Image.new("RGB", (320, 240), (60, 90, 160))
    arm.paste((200, 140, 110), (40, 0, 280, 240))
    arm = Image.fromarray(
        np.clip(np.asarray(arm) + np.random.default_rng(1).normal(0, 8, (240, 320, 3)), 0, 255).astype(np.uint8)
    )
    images = [
        fine,
        Image.new("RGB", (320, 240), (70, 130, 90)),
        fine.filter(ImageFilter.GaussianBlur(6)),
        dark,
        arm,
        fine.crop((0, 0, 90, 90)),
    ]
    results = checked(client, *images)
    assert found(results[0]) == set()
    assert not results[0]["flagged"]
    assert {"blank", "blurred"} <= found(results[1])
    assert found(results[2]) == {"blurred"}
    assert "too_dark" in found(results[3])
    assert found(results[4]) == {"skin"}
    assert "too_small" in found(results[5])
    assert all(0 <= score <= 1 for result in results for score in result["category_scores"].values())


def test_a_moderation_takes_images_only(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="expected a file of a form"):
        client.moderations.create(model="moderate", input="some text")
    text: Any = [{"type": "text", "text": "some"}]
    with pytest.raises(openai.BadRequestError, match="only image_url"):
        client.moderations.create(model="moderate", input=text)


def test_a_moderation_takes_so_many_images_that_others_need_not_wait_long(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="holds 11 images; 1 to 10 are looked at"):
        checked(client, *[Image.new("RGB", (32, 32))] * 11)


# -- by reference


def put(client: openai.OpenAI, data: bytes, name: str = "a.png") -> str:
    return client.files.create(file=(name, data), purpose="vision").id


def test_a_picture_that_was_uploaded_is_judged_by_its_id(client: openai.OpenAI) -> None:
    blank = Image.new("RGB", (320, 240))
    parts: Any = [{"type": "image_url", "image_url": {"url": put(client, png(blank))}}]
    made = client.moderations.create(model="moderate", input=parts)
    assert [result.model_dump(exclude_unset=True) for result in made.results] == checked(client, blank)


def test_a_file_of_another_tenant_does_not_exist_for_a_task(studio: Deployment, client: openai.OpenAI) -> None:
    body = {"model": "moderate", "input": put(client, png(scene()))}
    task = {"route": "/v1/moderations", "body": body}
    ends = []
    for tenant in ("acme", "default"):
        made = httpx.post(f"{studio.http}/v1/tasks", json={**task, "tenant": tenant}, timeout=60).json()
        ends.append(httpx.get(f"{studio.http}/v1/tasks/{made['id']}", params={"wait": 50}, timeout=60).json())
    assert [end["status"] for end in ends] == ["failed", "completed"]
    assert ends[0]["error"]["code"] == "file_not_found"


def test_a_folder_becomes_an_album_as_one_batch(studio: Deployment, beautify: ModuleType, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(scene(number)))
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "broken.png").write_bytes(png(scene())[:500])
    said = python(EXAMPLE / "album.py", folder, out, studio.http)
    assert sorted(path.name for path in out.iterdir()) == [f"{number}.png.png" for number in range(3)]
    for number in range(3):
        assert (out / f"{number}.png.png").read_bytes() == whole(beautify, scene(number))
    assert "bomb.png: the image has more than 24000000 pixels" in said
    assert "broken.png: the image cannot be read" in said


def whole(beautify: ModuleType, image: Image.Image) -> bytes:
    for step in beautify.STEPS.values():
        image = step(image)
    made: bytes = beautify.encoded(image, "png")
    return made


def ended(client: openai.OpenAI, batch_id: str) -> openai.types.Batch:
    def over() -> bool:
        return client.batches.retrieve(batch_id).status in ("completed", "failed", "cancelled", "expired")

    wait_blocking(over, "the batch has ended", timeout_s=100)
    return client.batches.retrieve(batch_id)


@pytest.mark.timeout(180)
def test_a_batch_whose_worker_is_killed_ends_complete_and_exact(
    studio: Deployment, client: openai.OpenAI, beautify: ModuleType
) -> None:
    body = {"model": "beautify", "prompt": "beautify", "answer": "file"}
    uploads = {f"item-{number}": put(client, png(scene(number, (480, 360)))) for number in range(PICTURES)}
    uploads["gone"] = "file-" + "0" * 32
    items = [
        {"custom_id": name, "method": "POST", "url": "/v1/images/edits", "body": {**body, "images": [{"file_id": id}]}}
        for name, id in uploads.items()
    ]
    tasks = client.files.create(file=("in.jsonl", "\n".join(map(json.dumps, items)).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=tasks.id, endpoint="/v1/images/edits", completion_window="24h")
    wait_blocking(lambda: running(studio) > 0, "pictures are being made", timeout_s=60)
    for pid in studio.processes()["inference"]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    batch = ended(client, batch.id)
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (PICTURES, 1)
    lines = [json.loads(line) for line in client.files.content(batch.output_file_id or "").text.splitlines()]
    made = {line["custom_id"]: line["response"]["body"] for line in lines}
    assert sorted(made) == sorted(uploads.keys() - {"gone"})
    for number in range(PICTURES):
        data = client.files.content(made[f"item-{number}"]["id"]).content
        assert data == whole(beautify, scene(number, (480, 360)))
    (failed,) = [json.loads(line) for line in client.files.content(batch.error_file_id or "").text.splitlines()]
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("gone", 404)


def running(studio: Deployment) -> int:
    """Tasks that a worker has begun."""
    with redis.Redis.from_url(studio.redis) as bus:
        return int(bus.zcard("hr:{beautify.0}:leases"))


def test_a_system_with_a_redis_client_only_gets_the_file_by_its_reply(
    studio: Deployment, client: openai.OpenAI, beautify: ModuleType
) -> None:
    body = {"model": "beautify", "image": put(client, png(scene(1))), "prompt": "beautify", "answer": "file"}
    task = {"route": "/v1/images/edits", "body": body, "reply_to": "studio", "task_id": "picture-1"}
    with redis.Redis.from_url(studio.redis) as bus:
        bus.xadd("hr:requests", {"task": json.dumps(task)})
        read: Any = bus.xread({"hr:reply:studio": "0"}, block=60_000)
        ((_, ((_, fields),)),) = read
        bus.delete("hr:reply:studio")
    made = json.loads(fields[b"reply"])["result"]
    assert (made["object"], made["filename"], made["content_type"]) == ("file", "a-beautiful.png", "image/png")
    assert client.files.content(made["id"]).content == whole(beautify, scene(1))
