"""What the processes of the python engine print, in the log of the worker."""

import asyncio
import logging
import re

from shared.clock import monotonic_s

log = logging.getLogger(__name__)

LINES_PER_S = 100
"""That a process may add to the log."""
LINE_BYTES = 4096


async def log_lines(stream: asyncio.StreamReader, name: str) -> None:
    """What a process prints, whatever that is, as lines of the log; those beyond LINES_PER_S are counted only."""
    rest, second_s, logged, left_out = b"", 0.0, 0, 0
    while data := await stream.read(1 << 16):
        *lines, rest = re.split(rb"[\r\n]+", rest + data)
        if len(rest) > LINE_BYTES:
            lines, rest = [*lines, rest], b""
        for line in filter(None, lines):
            if monotonic_s() - second_s >= 1:
                _log_left_out(name, left_out)
                second_s, logged, left_out = monotonic_s(), 0, 0
            if logged < LINES_PER_S:
                log.info("%s: %s", name, _printable(line))
                logged += 1
            else:
                left_out += 1
    if rest:
        log.info("%s: %s", name, _printable(rest))
    _log_left_out(name, left_out)


def _log_left_out(name: str, lines: int) -> None:
    if lines:
        log.info("%s: %d lines left out, it prints more than %d a second", name, lines, LINES_PER_S)


def _printable(line: bytes) -> str:
    text = line[:LINE_BYTES].decode(errors="replace")
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
