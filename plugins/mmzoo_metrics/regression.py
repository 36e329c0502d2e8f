"""Score estimated numbers as scikit-learn and scipy define it; several numbers give the mean of their scores.

The references of an example are its numbers, in order. A prediction has ``value`` or ``values``; else its text is read as a
number, so that generated numbers can be measured too.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from mmzoo.api import DataError, Metric, Prediction
from mmzoo_metrics.classification import ratio


def numbers_of(predictions: Sequence[Prediction], references: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return estimates and truth, both [examples, values], float64.

    Raises:
        DataError: a prediction or reference is no number, or they differ in how many numbers they have.
    """
    pairs = []
    for i, (prediction, right) in enumerate(zip(predictions, references, strict=True)):
        values = prediction.values or ((prediction.text if prediction.value is None else prediction.value),)
        try:
            pairs.append(([float(value) for value in values], [float(text) for text in right]))
        except ValueError as error:
            raise DataError(f"example {i + 1}: {error}; this metric compares numbers") from None
        if not len(values) == len(right) == len(pairs[0][1]):
            raise DataError(f"example {i + 1}: {len(values)} numbers are predicted, and {len(right)} are right")
    shape = (len(pairs), len(pairs[0][1]) if pairs else 1)
    return np.array([own for own, _ in pairs]).reshape(shape), np.array([truth for _, truth in pairs]).reshape(shape)


class MeanAbsoluteError(Metric):
    """Average the absolute error over examples and numbers. Rows are [error, 1]."""

    perfect = 0.0
    smaller_is_better = True

    def rows(self, predictions: Sequence[Prediction], references: Sequence[Sequence[str]]) -> np.ndarray:
        estimates, truth = numbers_of(predictions, references)
        return np.column_stack([self.errors(estimates - truth).mean(1), np.ones(len(truth))])

    def score(self, totals: np.ndarray) -> np.ndarray:
        return ratio(totals[..., 0], totals[..., 1], empty=np.nan)

    def errors(self, differences: np.ndarray) -> np.ndarray:
        """Return the errors of differences, of any shape."""
        return np.abs(differences)


class MeanSquaredError(MeanAbsoluteError):
    """Average the squared error over examples and numbers. Rows are [error, 1]."""

    def errors(self, differences: np.ndarray) -> np.ndarray:
        return differences**2


class _Moments(Metric):
    """Compute a score of each number from sums of products. Rows are those of [1, x, y, x^2, y^2, xy], [examples, 6 * values]."""

    def rows(self, predictions: Sequence[Prediction], references: Sequence[Sequence[str]]) -> np.ndarray:
        x, y = self.prepare(*numbers_of(predictions, references))
        return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1).reshape(len(x), -1)

    @abstractmethod
    def prepare(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y from estimates and truth, all [examples, values], in units that keep the sums precise."""

    def score(self, totals: np.ndarray) -> np.ndarray:
        return self.of_sums(np.moveaxis(totals.reshape(*totals.shape[:-1], 6, -1), -2, 0)).mean(-1)

    @abstractmethod
    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        """Return the score of each number [..., values] from its ``sums`` [6, ..., values]."""


class R2(_Moments):
    """Compute the share of the truth's variance that is explained; for a truth that is always the same 1 if it is met, else 0."""

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        n, _, y, xx, yy, _ = sums
        variance = _clean(yy - ratio(y * y, n), yy)
        return np.where(variance > 0, 1 - ratio(xx, variance), (xx == 0).astype(float))

    def prepare(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x - y, y - y.mean(0)  # the errors; a shift keeps the sums precise


class Pearson(_Moments):
    """Compute the linear correlation (Pearson 1895, https://doi.org/10.1098/rspl.1895.0041); 0 if one side never changes."""

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        n, x, y, xx, yy, xy = sums
        vx, vy = _clean(xx - ratio(x * x, n), xx), _clean(yy - ratio(y * y, n), yy)
        return np.clip(ratio(xy - ratio(x * y, n), np.sqrt(vx) * np.sqrt(vy)), -1, 1)

    def prepare(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _scaled(x), _scaled(y)


class Spearman(Pearson):
    """Compute the correlation of ranks (Spearman 1904, https://doi.org/10.2307/1412159); 0 if one side never changes.

    Ranks are those in the whole split, equal numbers having their mean rank. A resample of the bootstrap keeps these ranks, so
    its interval is approximate.
    """

    compares_all = True

    def prepare(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _scaled(_ranks(x)), _scaled(_ranks(y))


def _clean(difference: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return a difference of sums, and 0 where it is only their rounding error."""
    return np.where(difference > 1e-13 * size, difference, 0.0)


def _scaled(values: np.ndarray) -> np.ndarray:
    """Return values [examples, values] with mean 0 and largest magnitude 1."""
    values = np.where(np.ptp(values, axis=0) > 0, values - values.mean(0), 0.0)
    return values / np.where(values.any(0), np.abs(values).max(0), 1.0)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value in its column, [examples, values]."""
    ranks = np.empty_like(values)
    for column, result in zip(values.T, ranks.T, strict=True):
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        result[:] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks
