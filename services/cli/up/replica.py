"""A program kept running: started again when it dies, given up when it keeps dying."""

import asyncio
from urllib.parse import urlsplit

import msgspec

from services.cli.failure import Failure
from services.cli.up.process import Process, Program
from services.cli.up.screen import Screen
from shared.clock import monotonic_s

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
QUICK_S = 5.0
"""A death after a longer life, counted from when it was ready, is paused for as the first."""
FAILED_STARTS = 5
"""In a row: starting it a sixth time would not help."""


class Replica:
    def __init__(self, program: Program, screen: Screen) -> None:
        self.program = program
        self.url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set when it is ready for the first time."""
        self._screen = screen
        self._process: Process | None = None
        self._is_ready = False
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> "asyncio.Task[None]":
        """The task runs until `stop`; it raises Failure if the program cannot be kept running."""
        self.program.log.unlink(missing_ok=True)
        self._keeping = asyncio.create_task(self._keep(), name=self.program.name)
        return self._keeping

    async def stop(self, grace_s: float) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        if self._process is not None:
            await self._process.stop(grace_s)

    def hang_up(self) -> None:
        """A process that is not ready yet may die of the signal, and reads its configuration anyway."""
        if self._process is not None and self._is_ready:
            self._process.hang_up()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def _keep(self) -> None:
        deaths = failed = 0
        program = self.program
        while True:
            self._process = self._spawn(program)
            url = await self._process.ready()
            self._is_ready, ready_at_s = url is not None, monotonic_s()
            if url is not None and not self.url.done():
                self.url.set_result(url)
            program = on_port_of(url, self.program) if url else self.program
            how = await self._process.ended()
            self._is_ready = False
            deaths = deaths + 1 if url is None or monotonic_s() - ready_at_s < QUICK_S else 1
            failed = failed + 1 if url is None else 0
            if not self.url.done():
                raise self._broken(f"{self.program.name} did not start ({how})")
            if failed >= FAILED_STARTS:
                raise self._broken(f"{self.program.name} did not start {failed} times in a row ({how})")
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (deaths - 1))
            self._screen.say(f"{self.program.name} ended ({how}); starting it again in {pause_s:g} s")
            await asyncio.sleep(pause_s)

    def _spawn(self, program: Program) -> Process:
        try:
            return Process(program)
        except OSError as error:
            raise Failure(f"{self.program.argv[0]} cannot be started: {error.strerror}") from None

    def _broken(self, what: str) -> Failure:
        last = self._process.last_lines() if self._process is not None else ""
        remedy = f"The lines above are the end of {self.program.log}; mend what they tell, then start again."
        return Failure(f"{what}:\n{last}\n{remedy}")


def on_port_of(url: str, program: Program) -> Program:
    """The program as it is started again: others know where it was. If it does not start so, the port has been taken since."""
    port = urlsplit(url).port
    if port is None:
        return program
    environ = {**program.environ, f"HEADRACE_{program.service.upper()}_PORT": str(port)}
    return msgspec.structs.replace(program, environ=environ)
