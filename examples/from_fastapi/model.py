"""The model: how much will be sold in the next days, by what was sold in the days before. It takes most of a second of a core.

Exponential smoothing with a level, a trend and a weekly season (Holt-Winters, additive), with the settings that would have foretold
the past best. How far off those would have been tells how far off the forecast may be.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

WEEK = 7
STEPS = 50
"""Of each of three settings; all combinations are tried."""
PATHS = 1000
"""Futures that are thrown: ten of a hundred lie below `low`, ten above `high`."""


class Smoothing:
    """What some settings make of the days, one after the other: level, trend and season of each setting."""

    def __init__(self, settings: np.ndarray, sales: np.ndarray) -> None:
        """`settings`: three rows, each between 0 (never learns) and 1 (forgets all that was)."""
        self.settings, self.rest, self.day = settings, sales[WEEK:], 0
        count, mean = settings.shape[1], sales[:WEEK].mean()
        self.level, self.trend = np.full(count, mean), np.zeros(count)
        self.season = np.repeat((sales[:WEEK] - mean)[:, None], count, axis=1)

    def expected(self) -> np.ndarray:
        return self.level + self.trend + self.season[self.day % WEEK]

    def learn(self, error: np.ndarray) -> None:
        level, trend, season = self.settings
        self.level += self.trend + level * error
        self.trend += level * trend * error
        self.season[self.day % WEEK] += (1 - level) * season * error
        self.day += 1

    def errors(self) -> Iterator[np.ndarray]:
        """Of each setting, day by day."""
        for sold in self.rest:
            error = sold - self.expected()
            self.learn(error)
            yield error


class Forecaster:
    def load(self) -> None:
        each = np.linspace(0.01, 0.6, STEPS)
        self.settings = np.stack(np.meshgrid(each, each, each)).reshape(3, -1)

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        """`sales`: of each day, four weeks at least; `days`: how many to foretell. Raises: ValueError."""
        sales, chance = np.array(body["sales"], float), np.random.default_rng(seed=0)
        if np.ptp(sales) == 0:
            raise ValueError("sales are the same every day: there is nothing to foretell")
        squared = sum(error**2 for error in Smoothing(self.settings, sales).errors())
        best = self.settings[:, [np.argmin(squared)]]
        future = Smoothing(best.repeat(PATHS, axis=1), sales)
        missed = [error[0] for error in future.errors()]
        days = []
        for _ in range(body["days"]):
            error = chance.choice(missed, PATHS)
            days.append(future.expected() + error)
            future.learn(error)
        low, middle, high = np.percentile(np.maximum(days, 0), (10, 50, 90), axis=1).round(2).tolist()
        return {"forecast": middle, "low": low, "high": high}
