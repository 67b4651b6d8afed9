"""Which web pages may talk to us. An Origin header is set by the browser, and a page cannot forge it."""

import re


def origin_pattern(origins: str) -> re.Pattern[str]:
    """Matches the listed origins (separated by commas, exact) and every page of this machine."""
    loopback = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
    listed = [re.escape(origin.strip().rstrip("/")) for origin in origins.split(",") if origin.strip()]
    return re.compile("|".join([loopback, *listed]))
