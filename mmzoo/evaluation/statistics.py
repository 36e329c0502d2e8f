"""Compute a score and its bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

import numpy as np

from mmzoo.errors import DataError
from mmzoo.evaluation.metric import Metric
from mmzoo.interfaces import Prediction

RESAMPLES = 1000
BLOCK = 2e7  # weights that are drawn at once


@dataclass(frozen=True)
class Score:
    """Hold a score and the ends of its 95% percentile bootstrap interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return the score as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Mean:
    """Hold the mean of a number over several runs, and half of its 95% interval by Student's t; None of a single run."""

    value: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Return the mean of at least one value."""
        count = len(values)
        half = t_quantile(count - 1) * stdev(values) / math.sqrt(count) if count > 1 else None
        return cls(fmean(values), half)

    def to_dict(self) -> dict[str, float]:
        """Return the mean as plain data, with the ends of its interval if it has one."""
        ends = {} if self.half is None else {"low": self.value - self.half, "high": self.value + self.half}
        return {"mean": self.value, **ends}

    def text(self, digits: int = 4) -> str:
        """Return it as ``0.9712 ± 0.0031``."""
        return f"{self.value:.{digits}f}" + ("" if self.half is None else f" ± {self.half:.{max(digits, 1)}f}")


def t_quantile(degrees: int) -> float:
    """Return the t that a variable of Student's distribution with so many degrees of freedom exceeds with probability 0.025.

    The probability is a finite sum for whole degrees (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4); its root is bisected.
    """
    low, high = 0.0, 13.0  # it is 12.7 for one degree, and falls
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 0.95 else (low, middle)
    return low


def _within(t: float, degrees: int) -> float:
    """Return the probability of a value between -t and t."""
    angle, odd = math.atan(t / math.sqrt(degrees)), degrees % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(1, degrees // 2 + 1):
        total += term
        term *= math.cos(angle) ** 2 * (2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
    return (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total


def measure(
    metric: Metric,
    predictions: Sequence[Prediction],
    references: Sequence[Sequence[str]],
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Score:
    """Return the score of predictions with its interval; without ``resamples`` the interval is the score itself, and only metrics
    that compare all examples need the ``groups``.

    Examples of one group (one image) are resampled together, since they are not independent (the cluster bootstrap; Davison and
    Hinkley 1997, section 3.8).

    Raises:
        DataError: there are no predictions.
    """
    if not len(predictions):
        raise DataError("there are no predictions to measure")
    if metric.compares_all:
        metric.groups = groups
    rows = metric.rows(predictions, references)
    value = float(metric.score(rows.sum(0)))
    if not resamples:
        return Score(value, value, value)
    # Groups are numbered in order of appearance: an order by hash would change between processes, and the interval with it.
    numbers: dict[Hashable, int] = {}
    codes = [numbers.setdefault(group, len(numbers)) for group in groups]
    clusters = np.zeros((len(numbers), rows.shape[1]))
    np.add.at(clusters, codes, rows)
    random, count = np.random.default_rng(seed), len(clusters)
    scores: list[np.ndarray] = []
    step = max(1, min(resamples, int(BLOCK // count)))  # bounds the memory of one block
    for start in range(0, resamples, step):
        weights = random.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - start))
        scores.append(metric.score(weights @ clusters))
    low, high = np.nanpercentile(np.concatenate(scores), [2.5, 97.5])
    return Score(value, float(low), float(high))
