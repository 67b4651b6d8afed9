"""How a command ends when it cannot do what was asked."""

from shared.errors import HeadraceError

OK, FAULT, USAGE, TASK_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes of every command; `headrace --help` explains them."""


class Failure(HeadraceError):
    """Shown as it is, without a traceback: what is wrong, and what to do about it."""

    def __init__(self, message: str, *, code: int = FAULT) -> None:
        super().__init__(message)
        self.code = code
