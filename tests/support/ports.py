"""Ports for programs that must be told theirs, or that come back to the one they had. Whoever can, listens on port 0 instead."""

import random
import socket
from pathlib import Path

KERNELS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""What the kernel gives to connections, and to whoever listens on port 0."""
LOWEST = 20_000
"""Below it is what well-known services listen on."""
_chance = random.SystemRandom()  # another one may be seeded, and give each process the same ports
_given: set[int] = set()


def free_port() -> int:
    """One that the kernel gives to nobody by itself, so that it stays free until it is used; never the same one twice."""
    first = int(KERNELS.read_text().split()[0])
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", _chance.randrange(LOWEST, first) if first > LOWEST else 0))
            except OSError:  # taken
                continue
            port: int = probe.getsockname()[1]
        if port not in _given:
            _given.add(port)
            return port
