"""Simulated time: the scripts read it where they would ask Redis.

Scripts know the time from shared/lua/lib/clock.lua alone. While the simulator runs, that library is replaced by one that
reads a key, which the simulator sets; nothing else of the scripts is touched. So an hour takes seconds, and a run is
repeated exactly.
"""

import contextlib
import hashlib
import importlib.resources
from collections.abc import Iterator

from shared.bus.script import Script

KEY = "simulated:now_ms"
BEGAN_MS = 4_000_000_000_000
"""In the year 2096: later than the real time by which Redis numbers stream entries, so scripts that trim a stream by age empty
it, and a long run needs no more memory than a short one."""

REAL = importlib.resources.files("shared").joinpath("lua", "lib", "clock.lua").read_text()
SIMULATED = f"""local now_ms = tonumber(redis.call('GET', '{KEY}'))
local time = {{tostring(math.floor(now_ms / 1000)), tostring(now_ms % 1000 * 1000)}}
"""


@contextlib.contextmanager
def simulated_time() -> Iterator[None]:
    """Meanwhile all scripts of this process know only simulated time; connections must be opened within."""
    scripts = list(Script.registry.values())
    before = [(script, script.source) for script in scripts]
    try:
        for script in scripts:
            _become(script, script.source.replace(REAL, SIMULATED))
            assert "'TIME'" not in script.source, f"{script.name} asks Redis for the time beside the library `clock`"
        yield
    finally:
        for script, source in before:
            _become(script, source)


def _become(script: Script, source: str) -> None:
    Script.registry.pop(script.sha, None)
    script.source = source
    script.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    Script.registry[script.sha] = script
