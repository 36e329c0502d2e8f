"""Compute a score and its bootstrap interval."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

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


def measure(
    metric: Metric,
    predictions: Sequence[Prediction],
    references: Sequence[Sequence[str]],
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Score:
    """Return the score of predictions with its interval; without ``resamples`` the interval is the score itself.

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
