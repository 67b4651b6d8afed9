"""Synthetic traces, by a seed: arrivals times sizes times tenants.

Arrivals are Poisson processes, whose rate may change; sizes of prompts and answers have the heavy tails that are seen in
practice (lognormal: BurstGPT, arXiv 2401.17644; Pareto for the worst case).
"""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator

from msgspec import Struct

from shared.lifecycle import Lane
from tests.simulate.trace import Row

Size = Callable[[random.Random], tuple[int, int, int]]
"""Tokens of the prompt, tokens of the answer, and max_tokens (0: not said)."""
Rate = Callable[[float], float]
"""Arrivals a second at a time (s)."""
LONGEST = 4000
"""Tokens of a prompt or an answer: the context of a model ends somewhere."""


def fixed(tokens_in: int, tokens_out: int, max_tokens: int = 0) -> Size:
    return lambda dice: (tokens_in, tokens_out, max_tokens)


def lognormal(median_in: int, median_out: int, spread: float = 1.0, *, most: int = 0) -> Size:
    """`spread`: sigma of the logarithm; 1 gives a p99 of ten times the median."""

    def draw(dice: random.Random) -> tuple[int, int, int]:
        tokens_in, tokens_out = (clipped(m * math.exp(dice.gauss(0, spread))) for m in (median_in, median_out))
        return tokens_in, min(tokens_out, most or LONGEST), most

    return draw


def pareto(least_in: int, least_out: int, tail: float = 1.3, *, most: int = 0) -> Size:
    """`tail`: the smaller, the heavier; below 2 the variance is without bound."""

    def draw(dice: random.Random) -> tuple[int, int, int]:
        tokens_in, tokens_out = (clipped(least * dice.paretovariate(tail)) for least in (least_in, least_out))
        return tokens_in, min(tokens_out, most or LONGEST), most

    return draw


def clipped(tokens: float) -> int:
    return max(1, min(LONGEST, round(tokens)))


def at_once(count: int, at_s: float = 0.0) -> Iterator[float]:
    return itertools.repeat(at_s, count)


def steady(dice: random.Random, rate: float, begin_s: float, end_s: float) -> Iterator[float]:
    at_s = begin_s + dice.expovariate(rate)
    while at_s < end_s:
        yield at_s
        at_s += dice.expovariate(rate)


def changing(dice: random.Random, rate: Rate, most: float, begin_s: float, end_s: float) -> Iterator[float]:
    """A Poisson process whose rate changes, never above `most`: by thinning (Lewis, Shedler 1979)."""
    return (at_s for at_s in steady(dice, most, begin_s, end_s) if dice.random() * most < rate(at_s))


def diurnal(mean: float, depth: float, period_s: float) -> Rate:
    """Days: `depth` 0 is flat, 1 has nights without a request."""
    return lambda at_s: mean * (1 + depth * math.sin(2 * math.pi * at_s / period_s))


def bursts(calm: float, burst: float, every_s: float, length_s: float) -> Rate:
    return lambda at_s: burst if at_s % every_s < length_s else calm


class Zipf(Struct, frozen=True):
    """Many tenants, few of whom ask for most: the k-th as often as 1 / k ** exponent."""

    names: list[str]
    cumulated: list[float]

    def draw(self, dice: random.Random) -> str:
        return dice.choices(self.names, cum_weights=self.cumulated)[0]


def zipf(count: int, exponent: float = 1.1) -> Zipf:
    width = len(str(count))
    return Zipf(
        [f"t{rank:0{width}}" for rank in range(1, count + 1)],
        list(itertools.accumulate(rank**-exponent for rank in range(1, count + 1))),
    )


def rows(
    dice: random.Random,
    arrivals: Iterable[float],
    tenant: str | Zipf,
    lane: Lane,
    size: Size,
    *,
    expires_in_s: float = 0.0,
) -> Iterator[Row]:
    for at_s in arrivals:
        tokens_in, tokens_out, max_tokens = size(dice)
        yield Row(
            arrival_s=at_s,
            tenant=tenant if isinstance(tenant, str) else tenant.draw(dice),
            lane=lane,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            max_tokens=max_tokens,
            expires_in_s=expires_in_s,
        )
