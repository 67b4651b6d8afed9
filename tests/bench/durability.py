"""What is lost of acknowledged tasks, really: a server is killed under a load of submissions, and comes back.

Three faults. *Killed*: SIGKILL of the process; what it had written lies in the page cache and is still there. *Power off*:
what the server had not fsynced at that moment is cut off its files before it starts again (a preloaded library notes each
fsync: the worst that a disk without a lying cache does). *Machine lost*: the link to the replica, 20 ms long, is cut, the
primary is killed, and the replica is promoted.
"""

import asyncio
import contextlib
import logging
import os
import random
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct

from shared.bus.client import Bus
from shared.clock import monotonic_s
from shared.config import Config, Safety
from shared.errors import BusError
from shared.keys import keys_of
from shared.payer import ANONYMOUS
from shared.request import from_json
from shared.submit import Submitter
from tests.chaos.link import Link
from tests.support.redis import find_server
from tests.support.server import Server, replica_of, server
from tests.support.tasks import CONFIG, MODEL

Fault = Literal["killed", "power off", "machine lost"]

WRITERS = 64
LOAD_S = (2.0, 3.0)
"""More than two periods of everysec, and any phase of it."""
DELAY_S = 0.02
ENTRY = b'{"body":{"model":"%s","messages":[{"role":"user","content":"%s"}]}}' % (MODEL.encode(), b"x" * 180)
RECORDER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int noted(const char *name, int fd) {
  struct stat before;
  int known = fstat(fd, &before), done = ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
  if (known == 0 && done == 0) {
    char line[64];
    int length = snprintf(line, sizeof line, "%lu %ld\n", (unsigned long)before.st_ino, (long)before.st_size);
    int ledger = open(getenv("SYNCED"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (write(ledger, line, length) != length) abort();
    close(ledger);
  }
  return done;
}
int fsync(int fd) { return noted("fsync", fd); }
int fdatasync(int fd) { return noted("fdatasync", fd); }
"""


class Case(Struct, frozen=True):
    safety: Safety
    appendonly: str
    appendfsync: str
    fault: Fault

    @property
    def options(self) -> list[str]:
        """No rewrite of the file: it would sync between two faults."""
        no_rewrite = ["--auto-aof-rewrite-percentage", "0"]
        return ["--appendonly", self.appendonly, "--appendfsync", self.appendfsync, *no_rewrite]

    @property
    def title(self) -> str:
        file = f"appendfsync {self.appendfsync}" if self.appendonly == "yes" else "no append-only file"
        return f"{self.safety.durability:10}  {file:20}  {self.fault:12}"


class Outcome(Struct, frozen=True):
    acknowledged: int
    lost: int
    window_ms: float
    """From the first acknowledgement that was lost to the fault."""


def cases(*, power: bool) -> Iterator[Case]:
    fast, replicated, synced = (Safety(durability=d) for d in ("fast", "replicated", "synced"))
    faults: tuple[Fault, ...] = ("killed", "power off") if power else ("killed",)
    yield Case(fast, "no", "everysec", "killed")
    for appendfsync in ("no", "everysec", "always"):
        for fault in faults:
            yield Case(fast, "yes", appendfsync, fault)
    for appendfsync in ("everysec", "always"):
        for fault in faults:
            yield Case(synced, "yes", appendfsync, fault)
    for safety in (fast, replicated):
        yield Case(safety, "yes", "everysec", "machine lost")


async def measure(case: Case, folder: Path, recorder: Path | None) -> Outcome:
    ledger = folder / "synced"
    environ = {"LD_PRELOAD": str(recorder), "SYNCED": str(ledger)} if case.fault == "power off" else {}
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(server(find_server(), folder / "primary", *case.options, environ=environ))
        if case.fault == "machine lost":
            return await fail_over(case, primary, folder)
        acknowledged, struck_s = await strike(case, primary, lambda: None)
        if case.fault == "power off":
            lose_what_was_not_synced(primary.folder, ledger)
        primary.start()
        return await outcome(primary, acknowledged, struck_s)


async def fail_over(case: Case, primary: Server, folder: Path) -> Outcome:
    async with Link(primary.port) as link:
        link.delay_s = DELAY_S
        feeding = replica_of(primary, find_server(), folder / "replica", *case.options, port=port_of(link.url))
        replica = await asyncio.to_thread(feeding.__enter__)
        try:
            acknowledged, struck_s = await strike(case, primary, link.cut)
            replica.ask("REPLICAOF", "NO", "ONE")
            return await outcome(replica, acknowledged, struck_s)
        finally:
            feeding.__exit__(None, None, None)


async def strike(case: Case, primary: Server, cut: Callable[[], None]) -> tuple[dict[str, float], float]:
    """Acknowledged tasks with the time of it, and when the server died (monotonic s)."""
    config = Config(pools=CONFIG.pools, durability=case.safety.durability)
    struck = asyncio.Event()
    loading = asyncio.create_task(load(primary.url, config, struck))
    await asyncio.sleep(random.uniform(*LOAD_S))
    cut()
    primary.kill()
    struck_s = monotonic_s()
    struck.set()
    return await loading, struck_s


async def load(url: str, config: Config, struck: asyncio.Event) -> dict[str, float]:
    acknowledged: dict[str, float] = {}
    async with Bus(url, name="bench", safety=config) as bus:
        submitter = Submitter(bus, config)
        request = from_json(config, ANONYMOUS, ENTRY)

        async def write() -> None:
            with contextlib.suppress(BusError):
                while True:
                    id = (await submitter.submit(request, submitter.new_id(request))).id
                    acknowledged[id] = monotonic_s()

        writers = [asyncio.create_task(write()) for _ in range(WRITERS)]
        await struck.wait()
        for writer in writers:
            writer.cancel()
        await asyncio.wait(writers)
    return acknowledged


async def outcome(heir: Server, acknowledged: dict[str, float], struck_s: float) -> Outcome:
    async with Bus(heir.url, name="audit") as bus:
        found = await asyncio.gather(*(bus.bulk.send("EXISTS", keys_of(id)[0].task(id)) for id in acknowledged))
    lost = [at_s for at_s, exists in zip(acknowledged.values(), found, strict=True) if not exists]
    return Outcome(len(acknowledged), len(lost), (struck_s - min(lost)) * 1000 if lost else 0.0)


def lose_what_was_not_synced(folder: Path, ledger: Path) -> None:
    """Cut every file to what it had at its last fsync that succeeded."""
    noted = [line.split() for line in ledger.read_text().splitlines()]
    synced = {int(inode): int(size) for inode, size in noted}
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, min(path.stat().st_size, synced.get(path.stat().st_ino, 0)))


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def build_recorder(folder: Path) -> Path | None:
    """None: there is no C compiler here."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    source, library = folder / "recorder.c", folder / "recorder.so"
    source.write_text(RECORDER)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True, timeout=60)
    return library


async def main(rounds: int) -> None:
    logging.disable(logging.WARNING)  # the connections that are lost here
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorder = build_recorder(folder)
        print(
            f"{WRITERS} writers submit for {LOAD_S[0]:g} to {LOAD_S[1]:g} s, then the fault; {rounds} rounds each, sums; window: the worst"
        )
        if recorder is None:
            print("no C compiler here: power off is left out")
        print(f"{'durability':10}  {'Redis':20}  {'fault':12}  tasks/s  acknowledged    lost  window")
        for case in cases(power=recorder is not None):
            found = []
            for _ in range(rounds):
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    found.append(await measure(case, Path(place), recorder))
            acknowledged, lost = sum(o.acknowledged for o in found), sum(o.lost for o in found)
            rate = acknowledged / rounds / statistics.mean(LOAD_S)
            window_ms = max(o.window_ms for o in found)
            print(f"{case.title}  {rate:7.0f}  {acknowledged:12}  {lost:6}  {window_ms:4.0f} ms", flush=True)
