"""The engines by name: those that ship, and those that other packages bring (docs/engines.md)."""

from typing import cast

from services.inference.engine import Engine
from services.inference.engine_echo import EchoEngine
from shared.config import Limits, Pool
from shared.engine_options import installed_engine


def make_engine(pool: Pool, name: str, limits: Limits) -> Engine:
    """What an engine alone needs is imported here: it may take seconds. Raises: ConfigError."""
    options = pool.options(name)
    match name:
        case "echo":
            echo = pool.echo
            return EchoEngine(
                model=pool.model,
                adapters=pool.adapters,
                tokens_per_s=echo.tokens_per_s,
                first_token_ms=echo.first_token_ms,
                max_model_len=echo.max_model_len,
                slots=pool.slots,
                faults=echo.faults,
            )
        case "vllm":
            from services.inference.engine_vllm import VllmEngine

            vllm = pool.vllm
            return VllmEngine(
                model=pool.model, source=vllm.source, options=vllm.options, slots=pool.slots, wedged_s=vllm.wedged_s
            )
        case "openai":
            from services.inference.engine_openai import OpenaiEngine

            return OpenaiEngine(
                model=pool.model,
                adapters=pool.adapters,
                options=pool.openai,
                slots=pool.slots,
                result_bytes=limits.result_bytes,
            )
        case "python":
            from services.inference.engine_python import PythonEngine

            return PythonEngine(model=pool.model, options=pool.python, slots=pool.slots)
        case _:
            made = installed_engine(name)(model=pool.model, options=options, slots=pool.slots)
            return cast("Engine", made)
