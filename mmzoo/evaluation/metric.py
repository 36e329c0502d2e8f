"""Define `Metric`, the base of scores.

A metric returns a row of statistics for each example; its score is a function of the rows' sum. This holds for accuracy, F1
and n-gram metrics alike, and makes the bootstrap a matrix product: resampling examples means summing rows with other weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel

from mmzoo.interfaces import Options, Prediction


class Metric(ABC):
    """Score predictions against references. Register a subclass as an entry of kind ``metric``.

    Class attributes:
        perfect: the score if every prediction equals its reference.
        smaller_is_better: whether it is an error, such as the mean absolute error, whose ``perfect`` is 0.
        compares_all: whether the row of an example depends on the other examples, as in retrieval, so that it is computed on the
            whole split only.

    Attributes:
        groups: for a metric that compares all, the identity of each example's input, set before `rows` is called; None if each
            has its own.
        note: what a reader of the score must know of how it was computed, such as the unit, set by `rows`; may be empty.
    """

    Options: ClassVar[type[BaseModel]] = Options
    perfect: ClassVar[float] = 1.0
    smaller_is_better: ClassVar[bool] = False
    compares_all: ClassVar[bool] = False
    groups: Sequence[Hashable] | None = None
    note: str = ""

    def __init__(self, options: Any = None) -> None:
        self.options = options

    @abstractmethod
    def rows(self, predictions: Sequence[Prediction], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Return one row of statistics for each example, [examples, statistics], float64.

        Args:
            predictions: of the task; a metric of texts reads `Prediction.text`.
            references: the task's ``references``, one or more for each example.
        """

    @abstractmethod
    def score(self, totals: np.ndarray) -> np.ndarray:
        """Return scores [...] from sums of rows [..., statistics].

        For a mean, the last statistic of `rows` should count the examples.
        """
