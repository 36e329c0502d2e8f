"""Compute a score and its bootstrap interval."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mmzoo.errors import DataError
from mmzoo.evaluation.metric import Metric

RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """A score and the ends of its 95% percentile bootstrap interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def measure(
    metric: Metric,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Score:
    """The score with its interval. Examples of one group (one image) are resampled together, since they are not
    independent (the cluster bootstrap; Davison and Hinkley 1997, section 3.8).

    Raises:
        DataError: there are no predictions.
    """
    if not len(predictions):
        raise DataError("there are no predictions to measure")
    rows = metric.rows(predictions, references)
    # Numbered as they come: an order by hash would change with each process, and the interval with it.
    order: dict[Hashable, int] = {}
    codes = [order.setdefault(group, len(order)) for group in groups]
    clusters = np.zeros((len(order), rows.shape[1]))
    np.add.at(clusters, codes, rows)
    value = float(metric.score(rows.sum(0)))
    random = np.random.default_rng(seed)
    count = len(clusters)
    scores: list[np.ndarray] = []
    step = max(1, min(resamples, int(2e7 // count)))  # bounds the memory of one block of weights
    for start in range(0, resamples, step):
        weights = random.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - start))
        scores.append(metric.score(weights @ clusters))
    low, high = np.nanpercentile(np.concatenate(scores), [2.5, 97.5])
    return Score(value, float(low), float(high))
