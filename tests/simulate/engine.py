"""A model of an inference engine with continuous batching: all running tasks advance together, a step at a time.

A step makes one token of each task, and takes longer the more tasks run; a prompt is worked off in pieces, some hundred
tokens a step. So a task is a number of steps, and the time of a step depends on how many others run: that is all that
the scheduler's policy can feel of an engine.
"""

import heapq
import math

from msgspec import Struct


class Speed(Struct, frozen=True):
    """The defaults are those of a 7B model on one large GPU, in round numbers: 80 tokens a second for a task alone, 1,700 a
    second for 64 together."""

    step_s: float = 0.012
    each_s: float = 0.0004
    """Longer, for each task that runs."""
    prompt_tokens: int = 512
    """Of a prompt, in a step."""

    def seconds(self, running: int) -> float:
        """Of a step."""
        return self.step_s + self.each_s * running

    def steps(self, tokens_in: int, tokens_out: int) -> int:
        return math.ceil(tokens_in / self.prompt_tokens) + tokens_out

    def tokens_per_s(self, running: int) -> float:
        """Made by all that run together."""
        return running / self.seconds(running)


class Engine:
    """Times are seconds of the simulation, and never go back."""

    def __init__(self, speed: Speed) -> None:
        self._speed = speed
        self._steps, self._at_s = 0.0, 0.0
        self._ends: list[tuple[float, str]] = []
        """Steps at which a task is done. Those of tasks that were stopped stay until they come up."""
        self.running: dict[str, tuple[float, float]] = {}
        """Steps at which each began, and at which it will be done."""

    def begin(self, id: str, steps: int, now_s: float) -> None:
        self.advance(now_s)
        self.running[id] = self._steps, self._steps + steps
        heapq.heappush(self._ends, (self._steps + steps, id))

    def stop(self, id: str, now_s: float) -> int:
        """Whole steps that it has made."""
        self.advance(now_s)
        return int(self._steps - self.running.pop(id)[0])

    def advance(self, now_s: float) -> None:
        self._steps += (now_s - self._at_s) / self._speed.seconds(len(self.running))
        self._at_s = now_s

    def next_end_s(self) -> float:
        """When the next task is done, if none comes or goes before. math.inf: none runs."""
        while self._ends and self._is_stale(*self._ends[0]):
            heapq.heappop(self._ends)
        if not self._ends:
            return math.inf
        left = self._ends[0][0] - self._steps
        return self._at_s + max(0.0, left) * self._speed.seconds(len(self.running))

    def done(self, now_s: float) -> list[str]:
        """Tasks that are made by now; they do not run any more."""
        self.advance(now_s)
        found = []
        while self.next_end_s() <= now_s + 1e-6:
            _, id = heapq.heappop(self._ends)
            del self.running[id]
            found.append(id)
        return found

    def _is_stale(self, end: float, id: str) -> bool:
        return id not in self.running or self.running[id][1] != end
