"""Score labels: accuracy, exact match, precision, recall and F1, as scikit-learn defines them (`zero_division=0`).

A reference may hold several right answers. A prediction that is one of them is right; if it is none of them, precision, recall
and F1 count the most frequent as missed (the first of equal ones). An answer that no prediction can be is a class like any other,
one that is never found.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mmzoo.api import DataError, Metric, Options, Prediction

MAX_BYTES = 2 << 30


class Accuracy(Metric):
    """Compute the share of predictions that are among their references. Rows are [right, 1]."""

    def rows(self, predictions: Sequence[Prediction], references: Sequence[Sequence[str]]) -> np.ndarray:
        rows = np.ones((len(predictions), 2))
        for row, prediction, right in zip(rows, predictions, references, strict=True):
            row[0] = self.normal(prediction.text) in map(self.normal, right)
        return rows

    def score(self, totals: np.ndarray) -> np.ndarray:
        return ratio(totals[..., 0], totals[..., 1], empty=np.nan)

    def normal(self, text: str) -> str:
        """Return the text in the form that is compared."""
        return text


class ExactMatch(Accuracy):
    """Compute the accuracy after lower-casing and folding of white space, without a final full stop."""

    def normal(self, text: str) -> str:
        return " ".join(text.lower().split()).removesuffix(".").rstrip()


class _ByClass(Metric):
    """Average a score over the classes.

    Rows are [examples, classes * 3]: for each class in turn whether it was hit, predicted, and the reference. Averages:

    - ``macro``: the plain mean over the classes that are predicted or referred to at all. A class that a bootstrap
      resample lacks says nothing of the model there, and is left out of that resample's mean.
    - ``weighted``: the mean weighted by how often each class is the reference.
    - ``micro``: the score of the sums over all classes, which is the accuracy; rows are [examples, 3].
    """

    class Options(Options):
        average: Literal["macro", "micro", "weighted"] = Field("macro", description="how classes are averaged")

    def __init__(self, options: Any = None) -> None:
        super().__init__(options or self.Options())

    def rows(self, predictions: Sequence[Prediction], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Return the counts of each example by class.

        Raises:
            DataError: an example has no reference, or there are so many classes that the rows would exceed `MAX_BYTES`.
        """
        texts, actual = [prediction.text for prediction in predictions], []
        for i, (text, right) in enumerate(zip(texts, references, strict=True)):
            if not right:
                raise DataError(f"example {i + 1} has no reference")
            actual.append(text if text in right else max(right, key=right.count))
        classes = {name: i for i, name in enumerate(sorted({*texts, *actual}))}
        if self.options.average == "micro":
            classes = dict.fromkeys(classes, 0)
        count, width = len(actual), 1 + max(classes.values(), default=0)
        counts = zeros(count, width, 3)
        examples = np.arange(count)
        predicted = np.fromiter((classes[name] for name in texts), int, count)
        wanted = np.fromiter((classes[name] for name in actual), int, count)
        hit = np.fromiter(map(str.__eq__, texts, actual), float, count)
        counts[examples, predicted, 0] = hit
        counts[examples, predicted, 1] = 1
        counts[examples, wanted, 2] = 1
        return counts.reshape(count, 3 * width)

    def score(self, totals: np.ndarray) -> np.ndarray:
        hit, predicted, actual = np.moveaxis(totals.reshape(*totals.shape[:-1], -1, 3), -1, 0)
        scores = self.of_class(hit, predicted, actual)
        weights = actual if self.options.average == "weighted" else (predicted + actual > 0).astype(float)
        return ratio((scores * weights).sum(-1), weights.sum(-1), empty=np.nan)

    @abstractmethod
    def of_class(self, hit: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
        """Return the score of each class [..., classes] from its counts, all of that shape."""


class Precision(_ByClass):
    """Compute the share of the examples given a class that have it."""

    def of_class(self, hit: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
        return ratio(hit, predicted)


class Recall(_ByClass):
    """Compute the share of the examples that have a class that were given it."""

    def of_class(self, hit: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
        return ratio(hit, actual)


class F1(_ByClass):
    """Compute the harmonic mean of precision and recall."""

    def of_class(self, hit: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
        return ratio(2 * hit, predicted + actual)


def zeros(count: int, width: int, statistics: int) -> np.ndarray:
    """Return zeros [count, width, statistics]; raise a `DataError` if they would exceed `MAX_BYTES`."""
    if count * width * statistics * 8 > MAX_BYTES:
        raise DataError(
            f"{width} classes of {count} examples are too many for a mean over the classes, which is meant for a fixed label "
            "set; set average to micro, or measure accuracy"
        )
    return np.zeros((count, width, statistics))


def ratio(above: np.ndarray, below: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Return ``above / below``, and ``empty`` where ``below`` is 0."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    return np.divide(above, below, out=np.full(np.broadcast_shapes(above.shape, below.shape), empty), where=below > 0)
