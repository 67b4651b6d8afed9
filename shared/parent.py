"""The tie of a process to the one that started it. On its own, for what is started often and needs no more of a service."""

import ctypes
import os
import signal
import sys


def die_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent ends, however it ends. Linux only; elsewhere nothing happens."""
    if sys.platform == "linux":
        set_death_signal, parent = 1, os.getppid()
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
