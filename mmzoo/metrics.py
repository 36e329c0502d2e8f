"""Scores with intervals. A metric gives each example a row of numbers; its score is a function of their sum.

That one shape serves accuracy, F1 and n-gram metrics alike, and makes the bootstrap a matrix product: resampling
examples is summing their rows with other weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel

from mmzoo.errors import DataError
from mmzoo.interfaces.part import Options

RESAMPLES = 1000


class Metric(ABC):
    """A score of predictions against references. Register a subclass as an entry of kind ``metric``.

    Class attributes:
        perfect: the score where every prediction is its reference.
        smaller_is_better: of an error, such as a mean absolute one, whose ``perfect`` is 0.
    """

    Options: ClassVar[type[BaseModel]] = Options
    perfect: ClassVar[float] = 1.0
    smaller_is_better: ClassVar[bool] = False

    def __init__(self, options: Any = None) -> None:
        self.options = options

    @abstractmethod
    def rows(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """One row of statistics for each example, [examples, statistics], float64. Predictions are each `Prediction.text`, a
        value in digits where the task gives values; references are the task's ``references``."""

    @abstractmethod
    def score(self, totals: np.ndarray) -> np.ndarray:
        """Scores [...] from sums of rows [..., statistics]. The last statistic of `rows` should count examples
        where the score is a mean."""


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
