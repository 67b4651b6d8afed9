"""Progress for a person: lines that stay, and on a terminal one live line below them. All on stderr."""

import asyncio
import sys
from collections.abc import Callable

LIVE_S = 0.2
PLAIN_S = 10.0
"""Where nothing can be overwritten, a reminder so often."""


class Screen:
    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._shown = False

    def say(self, text: str) -> None:
        self._clear()
        print(text, file=sys.stderr, flush=True)

    async def watch(self, line: Callable[[], str]) -> None:
        """Show the text of `line` until cancelled."""
        try:
            while True:
                await asyncio.sleep(LIVE_S if self._live else PLAIN_S)
                if not self._live:
                    self.say(line())
                    continue
                self._clear()
                print(line(), end="", file=sys.stderr, flush=True)
                self._shown = True
        finally:
            self._clear()

    def _clear(self) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr)
            self._shown = False
