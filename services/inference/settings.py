from typing import Annotated

from msgspec import Meta

from shared.settings import CommonSettings


class Settings(CommonSettings, frozen=True, kw_only=True):
    """Settings of an inference worker, HEADRACE_INFERENCE_*."""

    port: int = 0
    pool: str = ""
    """The pool this worker belongs to; empty: the only one."""
    shard: Annotated[int, Meta(ge=0)] = 0
    engine: str = ""
    """A name of an engine, instead of the pool's; empty: the pool's."""
