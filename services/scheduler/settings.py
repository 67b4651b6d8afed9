from shared.settings import CommonSettings


class Settings(CommonSettings, frozen=True, kw_only=True):
    """Settings of the scheduler, HEADRACE_SCHEDULER_*."""

    port: int = 0
