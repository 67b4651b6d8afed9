"""Makes vLLM's processes die with the process that embeds the engine.

vLLM loads this (entry point `vllm.general_plugins` in pyproject.toml) in the service, in EngineCore and in each worker.
Without it they outlive a killed service, idle, and hold the memory of the model. Linux only; elsewhere nothing happens.
"""

import ctypes
import multiprocessing
import os
import signal
import sys

_SET_DEATH_SIGNAL = 1  # prctl(2), PR_SET_PDEATHSIG
_forking = os.getpid()


def register() -> None:
    if sys.platform != "linux":
        return
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        _die_with(parent.pid)
    # A forked child inherits vLLM's note that plugins were loaded, so this function is never called there.
    os.register_at_fork(before=_note_forking, after_in_child=_after_fork)


def _note_forking() -> None:
    global _forking
    _forking = os.getpid()


def _after_fork() -> None:
    _die_with(_forking)
    # Ctrl-C of a terminal goes to its whole process group. It is the service's to handle: it drains first, which
    # needs a living engine.
    os.setpgid(0, 0)


def _die_with(parent: int) -> None:
    """The kernel's signal follows the thread that made this process, so the engine is built in a main thread."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
