from typing import Annotated

from msgspec import Meta

from shared.settings import CommonSettings


class Settings(CommonSettings, frozen=True, kw_only=True):
    """Settings of the notifier, HEADRACE_NOTIFIER_*."""

    port: int = 8081
    origins: str = ""
    """Origins of web pages that may connect, separated by commas. Pages on this machine (loopback) always may."""
    heartbeat_s: Annotated[float, Meta(ge=0.05, le=300)] = 25.0
    """A ping is sent after so much silence; under the 60 s after which most proxies cut."""
    hello_s: Annotated[float, Meta(ge=0.05, le=60)] = 10.0
    """Time for the first message."""
