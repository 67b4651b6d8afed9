"""Has the policy follow headrace.toml while everything runs. Pools, limits and durability do not: they need a restart.

A file that is being written may be half there, and half a TOML file is often a valid one that says less: without its last
tables it would lift limits. So a changed file is read only when a second look finds it as the first did, and what was read is
used only if the file is still the same afterwards. Whoever replaces it by a rename, or swaps a link as Kubernetes does for a
config map, is on the safe side anyway.
"""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from prometheus_client import Counter, Gauge

from shared import config
from shared.clock import now_ms
from shared.config import DEFAULT_PATH, Config, Limits, Safety
from shared.errors import ConfigError
from shared.periodic import Periodic
from shared.policy import Policy

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks. A change holds after two; more looks would be more system calls for nothing."""
NAMED = 10
"""Names of one kind that a line of the log tells."""

RELOADS = Counter("hr_config_reloads_total", "Changed files, by what became of them: taken or refused", ("outcome",))
TAKEN = Gauge("hr_config_taken_timestamp_seconds", "Unix time at which the policy in force was taken")

Listener = Callable[[], Awaitable[None]]
Stamp = tuple[int, ...]


class Reload:
    """Looks at the file of a configuration, and replaces the policy in it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._path = Path(config.path or DEFAULT_PATH)
        self._seen: Stamp | None = None
        self._dealt_with: Stamp | None = None  # not the file as it is: it may have changed since the start
        self._was_there = config.path is not None
        self._forced = False
        self._listeners: list[Listener] = []
        self._untold: list[Listener] = []
        TAKEN.set(now_ms() / 1000)

    def on_change(self, listener: Listener) -> None:
        """Have `listener` called after each change, and again, look by look, until it succeeds."""
        self._listeners.append(listener)

    def force(self) -> None:
        """Read the file at the next look, whether it has changed or not."""
        self._forced = True

    async def look(self) -> None:
        """Raises: what a listener raises."""
        await self._look_at_file()
        while self._untold:
            await self._untold[0]()
            self._untold.pop(0)

    async def _look_at_file(self) -> None:
        stamp, forced = _stamp(self._path), self._forced
        if stamp is None:
            self._miss()
            return
        settled = forced or stamp == self._seen
        self._seen, self._was_there = stamp, True
        if not settled or (stamp == self._dealt_with and not forced):
            return
        self._forced = False
        refused: ConfigError | None = None
        try:
            read = await asyncio.to_thread(config.load, str(self._path), self._config)
        except ConfigError as error:
            refused = error
        if _stamp(self._path) != stamp:
            return
        self._dealt_with = stamp
        if refused is None:
            self._take(read)
        else:
            RELOADS.labels("refused").inc()
            log.error("%s\nNothing of it is used; the policy in force stays.", refused)

    def _miss(self) -> None:
        if self._was_there:
            log.warning("%s is gone; the policy in force stays", self._path)
        self._was_there, self._forced, self._seen, self._dealt_with = False, False, None, None

    def _take(self, read: Config) -> None:
        if late := list(_restarts(self._config, read)):
            log.warning(
                "%s: %s changed, which needs a restart and does nothing until then", self._path, ", ".join(late)
            )
        changed = changes(self._config.policy, read.policy)
        if not changed:
            log.debug("%s changes nothing of the policy", self._path)
            return
        self._config.live.policy = read.policy
        self._untold = list(self._listeners)
        RELOADS.labels("taken").inc()
        TAKEN.set(now_ms() / 1000)
        log.info("policy taken from %s: %s", self._path, "; ".join(changed))


def watching(config: Config, *listeners: Listener) -> Periodic:
    """The loop that keeps the policy of `config` as its file says. SIGHUP has it look at once, and read what it finds."""
    reload = Reload(config)
    for listener in listeners:
        reload.on_change(listener)
    loop = Periodic("the configuration", LOOK_S, reload.look)

    def on_hangup() -> None:
        reload.force()
        loop.wake()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)
    return loop


def changes(old: Policy, new: Policy) -> list[str]:
    """What differs, by name. Values are not told: they would take keys' digests into logs."""
    told = []
    for field in Policy.__struct_fields__:
        before, after = getattr(old, field), getattr(new, field)
        if before == after:
            continue
        if isinstance(before, dict):
            told.append(f"{field} {_names(before, after)}")
        else:
            told.append(field)
    return told


def _names(before: dict[str, object], after: dict[str, object]) -> str:
    marked = [f"+{name}" for name in after.keys() - before.keys()]
    marked += [f"-{name}" for name in before.keys() - after.keys()]
    marked += [f"~{name}" for name in before.keys() & after.keys() if before[name] != after[name]]
    marked.sort(key=lambda name: name[1:])
    more = f" and {len(marked) - NAMED} more" if len(marked) > NAMED else ""
    return " ".join(marked[:NAMED]) + more


def _restarts(old: Config, new: Config) -> Iterator[str]:
    for field in Safety.__struct_fields__:
        if getattr(old, field) != getattr(new, field):
            yield field
    for name in sorted(old.pools.keys() | new.pools.keys()):
        if old.pools.get(name) != new.pools.get(name):
            yield f"pools.{name}"
    for field in Limits.__struct_fields__:
        if getattr(old.limits, field) != getattr(new.limits, field):
            yield f"limits.{field}"


def _stamp(path: Path) -> Stamp | None:
    """What tells one state of a file, or of what a link leads to, from another; None: there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
