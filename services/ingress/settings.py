from shared.settings import CommonSettings


class Settings(CommonSettings, frozen=True, kw_only=True):
    """Settings of ingress, HEADRACE_INGRESS_*."""

    port: int = 8080
    notifier_url: str = "http://127.0.0.1:8081"
    """Base URL of the notifier as clients see it, for the links of a task."""
    origins: str = ""
    """Origins of web pages that may call, separated by commas. Pages on this machine (loopback) always may."""
