"""`headrace up`, from top to bottom."""

import argparse
import asyncio
import os
import signal
import sys
from typing import Any

import msgspec

from services.cli.failure import INTERRUPTED, OK, TASK_FAILED, Failure
from services.cli.up import model, redis_check
from services.cli.up.deployment import Deployment
from services.cli.up.home import Home, claim, default_folder
from services.cli.up.plan import Options, Plan, free_port, host_of, make_plan
from services.cli.up.redis_server import own_server
from services.cli.up.screen import Screen
from shared import config
from shared.payer import is_loopback, keys_required
from shared.settings import mask

QUESTION = "Why is the sky blue? Answer in one sentence."
GREET_S = 60.0
"""Its task waits for an engine that is away; we do not."""


def run(arguments: argparse.Namespace) -> int:
    """Raises: Failure, ConfigError."""
    options = msgspec.convert({name: value for name, value in vars(arguments).items() if name != "command"}, Options)
    deployed = config.load(options.config or os.environ.get("HEADRACE_CONFIG") or None)
    with claim(options.data_dir or default_folder(os.environ)) as home:
        plan = make_plan(options, deployed, os.environ)
        return asyncio.run(Up(options, plan, home).run())


class Up:
    def __init__(self, options: Options, plan: Plan, home: Home) -> None:
        self._options, self._plan, self._home = options, plan, home
        self._screen = Screen()
        self._ready = False
        self._replicas: dict[str, list[str]] = {}

    async def run(self) -> int:
        """Raises: Failure."""
        deployment = Deployment(self._screen)
        interrupted = self._interrupted(deployment)
        work = asyncio.create_task(self._work(deployment))
        try:
            ends: list[asyncio.Future[Any]] = [work, deployment.broken, interrupted]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if deployment.broken.done():
                deployment.broken.result()
            self._screen.say("\nstopping")
            return OK if self._ready and self._options.once is None else INTERRUPTED
        finally:
            work.cancel()
            await asyncio.wait([work])
            await deployment.stop()
            interrupted.cancel()

    async def _work(self, deployment: Deployment) -> int:
        if sources := self._plan.vllm_sources:
            await model.prepare(sources, self._plan.vllm_workers)
        urls = await self._start(deployment)
        self._ready = True
        if self._options.json:
            print(msgspec.json.encode({**urls, "replicas": self._replicas}).decode(), flush=True)
        self._screen.say("\n" + "\n".join(f"  {name:<6} {mask(url)}" for name, url in urls.items()) + "\n")
        if self._options.once is not None:
            return await self._ask(urls["http"], self._options.once)
        if not self._options.json and self._may_ask():
            await self._greet(urls["http"])
        self._screen.say(f"running; Ctrl-C stops everything. Logs: {self._home.folder / 'log'}")
        return await asyncio.Future()

    def _may_ask(self) -> bool:
        """Where keys are required, only with one; and never a callable, which is for what its own clients send."""
        if (self._plan.engine or next(iter(self._plan.config.pools.values())).engine) == "python":
            return False
        host = self._plan.environ.get("HEADRACE_INGRESS_HOST") or "127.0.0.1"
        required = keys_required(self._plan.config.policy, loopback=is_loopback(host))
        return not required or bool(self._plan.environ.get("HEADRACE_KEY"))

    async def _greet(self, http_url: str) -> None:
        """A question that shows that all works. A model that takes none, as one for embeddings, is no fault: it has been asked."""
        try:
            async with asyncio.timeout(GREET_S):
                await self._ask(http_url, QUESTION)
        except TimeoutError:
            self._screen.say(f"no answer within {GREET_S:g} s; the log of inference says why\n")
        except Failure as failure:
            if failure.code != TASK_FAILED:
                raise
            self._screen.say(f"no answer: {failure}\n")

    async def _start(self, deployment: Deployment) -> dict[str, str]:
        """Redis, then all services at once, while the Redis is looked at. Raises: Failure."""
        if redis_url := self._plan.environ.get("REDIS_URL"):
            await self._check(redis_url)
            self._replicas = await deployment.start(self._plan.programs(self._home, redis_url))
        else:
            port = free_port()
            redis_url = f"redis://127.0.0.1:{port}"
            await deployment.start([own_server(self._home, port, self._plan.environ, self._plan.config)])
            starting = deployment.start(self._plan.programs(self._home, redis_url))
            self._replicas, _ = await asyncio.gather(starting, self._check(redis_url))
        ws_url = f"ws://{host_of('notifier', self._plan.environ)}:{self._plan.ports['notifier'][0]}/v1/ws"
        http_url = f"http://{host_of('ingress', self._plan.environ)}:{self._plan.ports['ingress'][0]}"
        return {"http": http_url, "ws": ws_url, "redis": redis_url}

    async def _check(self, redis_url: str) -> None:
        for warning in await asyncio.to_thread(redis_check.check, redis_url, self._plan.config):
            self._screen.say(f"warning: {warning}")

    async def _ask(self, http_url: str, question: str) -> int:
        """The answer goes to stdout, unless that is for machines."""
        from services.cli.chat import ask

        self._screen.say(f"> {question}")
        out = sys.stderr if self._options.json else sys.stdout
        model_name = next(iter(self._plan.config.pools.values())).model
        await ask(http_url, model_name, question, on_text=lambda text: print(text, end="", file=out, flush=True))
        print(file=out, flush=True)
        return OK

    def _interrupted(self, deployment: Deployment) -> "asyncio.Future[None]":
        """Done at the first SIGINT or SIGTERM, or when our terminal closes; a second signal kills what has not stopped.

        Any other SIGHUP is meant for the services: they read their configuration.
        """
        loop, had_terminal = asyncio.get_running_loop(), has_terminal()
        first: asyncio.Future[None] = loop.create_future()

        def on_signal() -> None:
            if first.done():
                deployment.kill()
            else:
                first.set_result(None)

        def on_hangup() -> None:
            if first.done():  # a closing terminal may say it twice
                return
            if had_terminal and not has_terminal():
                first.set_result(None)
            else:
                self._screen.say("SIGHUP: the services read the configuration")
                deployment.hang_up()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        loop.add_signal_handler(signal.SIGHUP, on_hangup)
        return first


def has_terminal() -> bool:
    """Whether there is a terminal that may close on us. The kernel takes it from us before it tells that it has closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
