"""A bar or a line for what takes long, where a person watches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def show_progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; call what it gives with how many more are done. `total` None: nobody knows how many there are."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda count: progress.advance(bar, count)


class Ticker:
    """One line on stderr that is written over; nothing where it would not be."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self.live = self._out.isatty()
        self._shown = ""

    def show(self, text: str) -> None:
        """Empty: no line."""
        if self.live and text != self._shown:
            self._out.write("\r\x1b[2K" + text)
            self._out.flush()
            self._shown = text

    def clear(self) -> None:
        self.show("")
