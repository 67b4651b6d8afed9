"""How services start without their Redis: they wait for it, say so, are not ready, and can be stopped."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.processes import alive, descendants, kill_all
from tests.support.redis import Proxy
from tests.support.waiting import wait_blocking, wait_until

SERVICES = ("ingress", "scheduler", "inference", "notifier")
POOL = '[pools.smol]\nmodel = "smollm2-135m-instruct"\nengine = "echo"\n'
EXIT_S = 60
"""Only a fault takes so long."""


class Service:
    """One process, and what it says."""

    def __init__(self, name: str, folder: Path, redis_url: str, config: str) -> None:
        self.name, self._log = name, folder / "log"
        file = folder / "headrace.toml"
        file.write_text(config)
        keep = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}  # noqa: TID251
        keep |= {"REDIS_URL": redis_url, "HEADRACE_CONFIG": str(file), "HEADRACE_LOG_LEVEL": "debug"}
        keep[f"HEADRACE_{name.upper()}_PORT"] = "0"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-m", f"services.{name}"], stderr=log, env=keep)

    def said(self, words: str) -> list[str]:
        return [line for line in self._log.read_text().splitlines() if words in line]

    def url(self) -> str:
        wait_blocking(lambda: self.said("listening at"), f"{self.name} listens")
        found = re.search(r"listening at (http://\S+)", self._log.read_text())
        assert found is not None
        return found[1]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(EXIT_S)


@contextlib.contextmanager
def started(name: str, folder: Path, redis_url: str, config: str = POOL) -> Iterator[Service]:
    service = Service(name, folder, redis_url, config)
    try:
        yield service
    finally:
        kill_all(descendants(service.process.pid))
        service.process.kill()
        service.process.wait()


@pytest.fixture
def nowhere() -> Iterator[str]:
    """The port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("durability", ["fast", "replicated"])
@pytest.mark.parametrize("name", SERVICES)
def test_without_redis_a_service_waits_is_not_ready_and_ends_when_told(
    name: str, durability: str, nowhere: str, tmp_path: Path
) -> None:
    with started(name, tmp_path, nowhere, f'durability = "{durability}"\n{POOL}') as service:
        url = service.url()
        wait_blocking(lambda: service.said("cannot start yet"), "it says that it waits")
        tried = len(service.said("redis connection lost"))
        wait_blocking(lambda: len(service.said("redis connection lost")) > tried + 5, "it has tried again")
        ready, other = httpx.get(f"{url}/readyz"), httpx.get(f"{url}/v1/models")
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert (ready.status_code, other.status_code, other.headers["retry-after"]) == (503, 503, "2")
        assert "Redis is out of reach" in ready.json()["faults"][0]
        assert service.stop() == 0
        (told,) = service.said("WARNING")
        assert "cannot start yet: Redis is out of reach" in told
        assert not service.said("Traceback")


@pytest.mark.parametrize("name", SERVICES)
async def test_a_service_begins_once_its_redis_is_there(name: str, redis_url: str, tmp_path: Path) -> None:
    port = urlsplit(redis_url).port
    assert port is not None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with Proxy(f"redis://127.0.0.1:{taken.getsockname()[1]}") as proxy:
            with started(name, tmp_path, proxy.url) as service:
                await wait_until(lambda: service.said("cannot start yet"), "it waits")
                proxy.lead_to(port)
                await wait_until(lambda: service.said("ready at"), "it is ready")
                await wait_until(
                    lambda: httpx.get(f"{service.url()}/readyz").status_code == 200, "its loops have passed"
                )
                service.process.send_signal(signal.SIGTERM)
                await wait_until(lambda: service.process.poll() is not None, "it has ended", EXIT_S)
                assert service.process.returncode == 0


def test_a_service_that_is_told_to_end_while_its_engine_starts_ends(nowhere: str, tmp_path: Path) -> None:
    """A model takes minutes to load."""
    loads = "import pathlib, threading\npathlib.Path(__file__).with_name('begun').touch()\nthreading.Event().wait()\n"
    (tmp_path / "loading.py").write_text(loads)
    python = f'engine = "python"\npython.callable = "loading:answer"\npython.path = "{tmp_path}"\n'
    with started("inference", tmp_path, nowhere, POOL.replace('engine = "echo"\n', python)) as service:
        wait_blocking((tmp_path / "begun").exists, "the engine loads")
        below = descendants(service.process.pid)
        assert service.stop() == 0
        wait_blocking(lambda: not any(map(alive, below)), "none of the engine's processes is left")
