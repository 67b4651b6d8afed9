"""A bar or a line for what takes long, where a person watches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


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


class Meter:
    """What became of many, for who does not watch: only what they wait for is told, a line each time it is something else."""

    def __init__(self) -> None:
        self._told = ""

    def count(self, *, failed: bool) -> None:
        """One more has ended."""

    def tell(self, text: str) -> None:
        """Empty: it goes on."""
        if text and text != self._told:
            print(f"headrace: {text}", file=sys.stderr)
            self._told = text


class _Bar(Meter):
    def __init__(self, progress: "Progress", bar: "TaskID", done: int, failed: int) -> None:
        super().__init__()
        self._progress, self._bar = progress, bar
        self._done, self._failed = done, failed

    def count(self, *, failed: bool) -> None:
        self._failed += failed
        self._done += not failed
        self._progress.update(self._bar, advance=1, done=self._done, failed=self._failed)

    def tell(self, text: str) -> None:
        if text != self._told:
            self._progress.update(self._bar, told=text)
            self._told = text


@contextmanager
def show_meter(what: str, total: int | None, done: int, failed: int) -> Iterator[Meter]:
    """On a terminal a bar with counts, rate and time to come. `done`, `failed`: of earlier runs, which make no rate."""
    if not sys.stderr.isatty():
        yield Meter()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    class Rate(ProgressColumn):
        def render(self, task: Task) -> str:
            return f"{task.speed:,.1f}/s" if task.speed else "-/s"

    columns = (
        TextColumn(what), BarColumn(bar_width=20), MofNCompleteColumn(),
        TextColumn("{task.fields[done]} done, {task.fields[failed]} failed"),
        Rate(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[told]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(what, total=total, completed=done + failed, done=done, failed=failed, told="")
        yield _Bar(progress, bar, done, failed)


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
