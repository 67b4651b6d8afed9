"""Lua scripts: one operation a file, beside its caller; loaded on each new connection, run by digest.

What several scripts do alike lies in shared/lua/lib. A script takes it in with a line `-- USES clock, task`, which is
replaced by the named files: Redis has no modules, and a library on the server would tie releases together.
"""

import hashlib
import importlib.resources
import re
from collections.abc import Sequence
from typing import ClassVar

from shared.bus.connection import Arg

MAX_ITEMS = 100
"""Items of one call: about 5 ms of the server at most, so nobody else waits long."""
MAX_BYTES = 1024 * 1024


_USES = re.compile(r"^-- USES (.+)$", re.MULTILINE)


class Script:
    """Source and digest of a script. All scripts of a process are registered by being made."""

    registry: ClassVar[dict[str, "Script"]] = {}

    def __init__(self, package: str, name: str) -> None:
        self.name = name
        text = importlib.resources.files(package).joinpath("lua", f"{name}.lua").read_text()
        self.source = _USES.sub(_library, text)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        Script.registry.setdefault(self.sha, self)

    def command(self, keys: Sequence[str], args: Sequence[Arg]) -> list[Arg]:
        return ["EVALSHA", self.sha, len(keys), *keys, *args]


def _library(used: re.Match[str]) -> str:
    folder = importlib.resources.files("shared").joinpath("lua", "lib")
    return "\n".join(folder.joinpath(f"{name}.lua").read_text() for name in used[1].split(", "))
