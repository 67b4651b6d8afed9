"""The results of a file of tasks: each line exactly once, whatever ended an earlier run of the same command.

The output itself says which lines are finished: it is only ever appended to, a line at a time, and a last line without its end is
cut off, for its task is found again. Nothing is written twice over, so there are no two accounts that could differ after a kill.
Beside it, in `<output>.state`, stands what was settled before the first task was sent and never changes: the name of the run,
from which the tasks' keys follow, and what the input was. It cannot stand in the output, each of whose lines is a result.
"""

import fcntl
import os
import secrets
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from services.cli.failure import USAGE, Failure
from services.cli.lines import Identity
from services.cli.view import counts_as_failed
from shared.errors import UNDECODABLE

STDOUT = 1


class Run(Struct, frozen=True):
    """What all runs of a command that go on with one another have in common."""

    input: Identity | None
    """None: a pipe, so there is no going on."""
    wait: bool
    in_order: bool
    name: str = ""


class Finished(Struct):
    """A line of the output, as far as it matters here."""

    line: int
    status: str


_finished = msgspec.json.Decoder(Finished)
_state = msgspec.json.Decoder(Run)


class Results:
    def __init__(self, run: Run, name: str, descriptor: int, *, resumable: bool) -> None:
        self.run, self.name, self.resumable = run, name, resumable
        self.done, self.failed, self.earlier = 0, 0, 0
        self._descriptor, self._size = descriptor, 0
        self._seen = bytearray((run.input.last if run.input is not None else 0) // 8 + 1)
        self._due: deque[int] = deque()
        self._held: dict[int, tuple[bytes, bool]] = {}

    # -- what an earlier run left

    def read_back(self) -> None:
        """Raises: Failure if it is not the output of this run."""
        with open(self._descriptor, "rb", closefd=False) as file:
            for place, text in enumerate(file, 1):
                if text.endswith(b"\n"):
                    self._take(place, text)
                    self._size += len(text)
        self.earlier = self.done + self.failed
        os.ftruncate(self._descriptor, self._size)

    def _take(self, place: int, text: bytes) -> None:
        try:
            finished = _finished.decode(text)
        except UNDECODABLE:
            raise self._stranger(f"its line {place} is no result") from None
        last = self.run.input.last if self.run.input is not None else 0
        if not 1 <= finished.line <= last:
            raise self._stranger(f"its line {place} is the result of a line {finished.line}, which there is not")
        if self.has(finished.line):
            raise self._stranger(f"its line {place} is the second result of line {finished.line}")
        self._seen[finished.line // 8] |= 1 << finished.line % 8
        self._count(counts_as_failed(finished.status))

    def _stranger(self, why: str) -> Failure:
        return Failure(
            f"{self.name} is not as this command left it: {why}. Name another output, or begin anew with --restart."
        )

    def has(self, number: int) -> bool:
        """An earlier run has finished the line."""
        at = number // 8
        return at < len(self._seen) and bool(self._seen[at] & 1 << number % 8)

    # -- what this one adds

    def expect(self, number: int) -> None:
        """In the order of the input, of each line whose result will come."""
        if self.run.in_order:
            self._due.append(number)

    def write(self, number: int, text: bytes, *, failed: bool) -> list[bool]:
        """Of each line that was written: whether it failed. In order, a result waits for those before it. Raises: Failure."""
        if not self.run.in_order:
            self._append(text, failed)
            return [failed]
        self._held[number] = text, failed
        written = []
        while self._due and self._due[0] in self._held:
            earlier, fails = self._held.pop(self._due.popleft())
            self._append(earlier, fails)
            written.append(fails)
        return written

    def _append(self, text: bytes, failed: bool) -> None:
        rest = memoryview(text)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            if self.resumable:
                os.ftruncate(self._descriptor, self._size)
            raise Failure(f"{self.name} cannot be written: {error.strerror}") from None
        self._size += len(text)
        self._count(failed)

    def _count(self, failed: bool) -> None:
        self.failed += failed
        self.done += not failed


@contextmanager
def open_results(path: Path | None, run: Run, *, restart: bool) -> Iterator[Results]:
    """Standard output without a path. The run of an earlier command goes on, if it is the same. Raises: Failure."""
    if path is None:
        yield Results(_named(run), "standard output", STDOUT, resumable=False)
        return
    try:
        existed = path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        try:
            results = _results(path, run, descriptor, anew=restart or not existed)
        except OSError as error:
            raise _unwritable(path, error) from None
        yield results
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> Failure:
    return Failure(f"{error.filename or path} cannot be written: {error.strerror}")


def _results(path: Path, run: Run, descriptor: int, *, anew: bool) -> Results:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return Results(_named(run), str(path), descriptor, resumable=False)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed, by whatever end
    except BlockingIOError:
        raise Failure(f"another command writes {path}; let it end, or name another output") from None
    state = path.with_name(f"{path.name}.state")
    if anew:  # the state first: without it, what the output still has after a kill is nobody's
        state.unlink(missing_ok=True)
        os.ftruncate(descriptor, 0)
    begun = bool(os.fstat(descriptor).st_size)
    if run.input is None:
        if begun:
            raise Failure(
                f"{path} has content, and a pipe cannot be gone on with. Name another output, or add --restart."
            )
        state.unlink(missing_ok=True)
        return Results(_named(run), str(path), descriptor, resumable=False)
    earlier = None if anew else _earlier(path, state, run, begun=begun)
    results = Results(earlier or _begin(state, run), str(path), descriptor, resumable=True)
    results.read_back()
    return results


def _begin(state: Path, run: Run) -> Run:
    """Raises: OSError."""
    new = _named(run)
    whole = state.with_name(f"{state.name}.new")
    with whole.open("wb") as file:
        file.write(msgspec.json.encode(new) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    whole.replace(state)
    return new


def _earlier(path: Path, state: Path, run: Run, *, begun: bool) -> Run | None:
    """The run to go on with, if there is one. Raises: Failure if results of another would be lost."""
    try:
        earlier = _read(path, state)
        _compare(path, earlier, run)
    except Failure:
        if begun:
            raise
        return None
    return earlier


def _read(path: Path, state: Path) -> Run:
    try:
        return _state.decode(state.read_bytes())
    except (*UNDECODABLE, OSError):
        raise Failure(
            f"{path} has content, but {state.name}, which says whose, is {'broken' if state.exists() else 'missing'}. "
            "Name another output, or replace this one with --restart."
        ) from None


def _compare(path: Path, earlier: Run, run: Run) -> None:
    remedy = f"Go on as {path} was begun, name another output, or begin anew with --restart."
    if earlier.input != run.input:
        raise Failure(f"the tasks have changed since {path} was begun: they were other lines. {remedy}", code=USAGE)
    for option, before, after in (
        ("--no-wait", not earlier.wait, not run.wait),
        ("--in-order", earlier.in_order, run.in_order),
    ):
        if before != after:
            raise Failure(f"{path} was begun {'with' if before else 'without'} {option}. {remedy}", code=USAGE)


def _named(run: Run) -> Run:
    return msgspec.structs.replace(run, name=secrets.token_hex(8))
