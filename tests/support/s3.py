"""An S3 server of our own: nanio, which pip installs. It checks signatures, knows multipart uploads, and keeps objects in a folder.

Chosen over moto, the usual mock, which keeps all in memory and accepts any key; servers written in Go come from no registry here.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from msgspec import Struct

from tests.support.ports import free_port
from tests.support.waiting import wait_blocking

ACCESS, SECRET = "headrace-tests", "a-secret-of-the-tests"
BUCKET = "headrace"


class S3(Struct):
    url: str
    """Of a bucket, and a prefix in it."""
    environ: Mapping[str, str]
    """What its clients need."""
    folder: Path
    process: subprocess.Popen[bytes]

    def left(self) -> list[str]:
        """Everything that lies in it: objects, and parts of unfinished ones."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return sorted(str(path) for path in found if not {".nanio-meta", ".nanio"} & set(path.parts[:-1]))

    def unfinished(self) -> list[Path]:
        return list((self.folder / ".nanio" / "multipart").glob("*/*"))


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    (folder / BUCKET).mkdir(parents=True)
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "nanio",
        "serve",
        "--data-dir",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    keys = {"NANIO_ACCESS_KEY": ACCESS, "NANIO_SECRET_KEY": SECRET}
    with (folder.parent / "s3.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **keys})  # noqa: TID251
    try:
        wait_blocking(lambda: answers(endpoint), f"the S3 server answers at {endpoint}")
        environ = {
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_REGION": "us-east-1",
        }
        yield S3(f"s3://{BUCKET}/tests", environ, folder, process)
    finally:
        process.kill()
        process.wait()


def answers(endpoint: str) -> bool:
    try:
        return httpx.get(endpoint, timeout=5).status_code == 403  # there, and it wants a signature
    except httpx.TransportError:
        return False
