"""Define `Metric`, the base of scores.

A metric gives each example a row of numbers; its score is a function of their sum. That one shape serves accuracy, F1 and
n-gram metrics alike, and makes the bootstrap a matrix product: resampling examples is summing their rows with other weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel

from mmzoo.interfaces.part import Options


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
