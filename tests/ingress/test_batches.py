"""The Batch API at the door: whose a batch is, pages of the list, and what cannot be done without an object store."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from services.ingress.app import build
from services.ingress.attendance import Attendance
from services.ingress.settings import Settings
from shared import keys
from shared.batches import Batches, Status
from shared.bus.client import Bus
from shared.bus.tail import Tails
from shared.cancel import Canceller
from shared.config import Config
from shared.payer import digest_of
from shared.policy import Endpoint, Key, Live, Policy, Webhooks
from tests.support import tasks
from tests.support.batches import CHAT, line, uploaded

KEYS = {name: Key(sha256=digest_of(f"key of {name}"), tenant=name) for name in ("acme", "other")}
WEBHOOKS = Webhooks(
    endpoints={
        "orders": Endpoint(url="https://a.example/", secret_file="/s"),
        "theirs": Endpoint(url="https://b.example/", secret_file="/s", tenants=["other"]),
    }
)
CONFIG = Config(pools=tasks.CONFIG.pools, live=Live(Policy(keys=KEYS, webhooks=WEBHOOKS)))


def door(bus: Bus, objects_url: str) -> httpx.AsyncClient:
    settings = Settings(objects_url=objects_url)
    app = build(bus, CONFIG, settings, Tails([]), Attendance(bus, Canceller(bus, CONFIG)))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ingress")


def of(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer key of {tenant}"}


async def created(http: httpx.AsyncClient, file_id: str, tenant: str = "acme", **more: Any) -> httpx.Response:
    asked = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **more}
    return await http.post("/v1/batches", json=asked, headers=of(tenant))


async def test_batch_and_its_file_exist_for_their_tenant_only(bus: Bus, tmp_path: Path) -> None:
    file_id = await uploaded(bus, tmp_path, [line(1)])
    async with door(bus, f"file://{tmp_path}") as http:
        assert (await created(http, file_id, "other")).status_code == 404
        batch = (await created(http, file_id)).json()
        path = f"/v1/batches/{batch['id']}"
        assert (await http.get(path, headers=of("acme"))).json()["id"] == batch["id"]
        for answer in (
            await http.get(path, headers=of("other")),
            await http.post(f"{path}/cancel", headers=of("other")),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "batch_not_found")
        assert (await http.get("/v1/batches", headers=of("other"))).json()["data"] == []
        assert (await http.get(path)).status_code == 401
    assert (await Batches(bus, 1).read(batch["id"])).status is Status.VALIDATING


async def test_list_has_the_newest_first_in_pages(bus: Bus, tmp_path: Path) -> None:
    file_id = await uploaded(bus, tmp_path, [line(1)])
    async with door(bus, f"file://{tmp_path}") as http:
        made = [(await created(http, file_id)).json()["id"] for _ in range(5)]
        for age, batch_id in enumerate(reversed(made), 1):
            await bus.commands.call("ZADD", keys.batches_of("acme"), "XX", 1000 - age, batch_id)
        await bus.commands.call("UNLINK", keys.batch(made[3], "state"))  # it has expired
        seen: list[str] = []
        after, more = "", True
        while more:
            page = (await http.get("/v1/batches", params={"limit": 2, "after": after}, headers=of("acme"))).json()
            seen += [one["id"] for one in page["data"]]
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            after, more = page["last_id"], page["has_more"]
        assert seen == [made[4], made[2], made[1], made[0]]
        wrong = await http.get("/v1/batches", params={"after": "batch_x"}, headers=of("acme"))
        assert wrong.status_code == 404


async def test_cancel_is_harmless_when_repeated_and_too_late_after_the_end(bus: Bus, tmp_path: Path) -> None:
    file_id = await uploaded(bus, tmp_path, [line(1)])
    async with door(bus, f"file://{tmp_path}") as http:
        path = f"/v1/batches/{(await created(http, file_id)).json()['id']}"
        for _ in range(2):
            answer = await http.post(f"{path}/cancel", headers=of("acme"))
            assert (answer.status_code, answer.json()["status"]) == (200, "cancelling")
            assert answer.json()["cancelling_at"]
        await bus.commands.call("HSET", keys.batch(path.rpartition("/")[2], "state"), "status", "completed")
        late = await http.post(f"{path}/cancel", headers=of("acme"))
        assert (late.status_code, late.json()["error"]["code"]) == (409, "batch_over")
        assert late.headers["x-should-retry"] == "false"


async def test_without_an_object_store_the_refusal_names_the_variable(bus: Bus) -> None:
    async with door(bus, "") as http:
        answer = await created(http, "file-" + "0" * 32)
    assert answer.status_code == 501
    assert "HEADRACE_OBJECTS" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"endpoint": "/v1/audio/transcriptions"}, "endpoint"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"completion_window": "90m"}, "completion_window"),
        ({"completion_window": "721h"}, "completion_window"),
        ({"metadata": {"x" * 65: "y"}}, "metadata"),
        ({"metadata": {"x": 5}}, "metadata[...]"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after.anchor"),
        ({"input_file": "x"}, "input_file"),
    ],
)
async def test_wrong_wish_is_refused_by_its_name(bus: Bus, tmp_path: Path, wrong: dict[str, Any], param: str) -> None:
    file_id = await uploaded(bus, tmp_path, [line(1)])
    async with door(bus, f"file://{tmp_path}") as http:
        answer = await created(http, file_id, **wrong)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert await bus.commands.call("EXISTS", keys.BATCHES) == 0


@pytest.mark.parametrize("header", [False, True], ids=["field", "header"])
async def test_webhook_is_kept_if_its_tenant_may_name_it(bus: Bus, tmp_path: Path, header: bool) -> None:
    file_id = await uploaded(bus, tmp_path, [line(1)])

    async def asked(webhook: str) -> httpx.Response:
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
        named = {"x-headrace-webhook": webhook} if header else {}
        return await http.post(
            "/v1/batches", json=body if header else {**body, "webhook": webhook}, headers=of("acme") | named
        )

    async with door(bus, f"file://{tmp_path}") as http:
        batch = (await asked("orders")).json()
        refused = await asked("theirs")
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", "webhook": "orders"}
        two = await http.post("/v1/batches", json=body, headers=of("acme") | {"x-headrace-webhook": "theirs"})
        same = await http.post("/v1/batches", json=body, headers=of("acme") | {"x-headrace-webhook": "orders"})
    assert (two.status_code, two.json()["error"]["param"], same.status_code) == (400, "webhook", 200)
    assert (await Batches(bus, 1).read(batch["id"])).webhook == "orders"
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == ("x-headrace-webhook" if header else "webhook")
    assert "known: orders" in refused.json()["error"]["message"]


async def test_lines_of_the_upload_are_the_total_at_once(bus: Bus, tmp_path: Path) -> None:
    async with door(bus, f"file://{tmp_path}") as http:
        form = {"file": ("in.jsonl", b"\n".join([line(1), b"", line(2)]))}
        file = (await http.post("/v1/files", files=form, data={"purpose": "batch"}, headers=of("acme"))).json()
        batch = (await created(http, file["id"])).json()
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 0, "cancelled": 0, "expired": 0}
