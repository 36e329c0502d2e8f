"""Score sets of labels: F1, the share of sets that are right, and mean average precision, as scikit-learn defines them.

The references of an example are all its labels, perhaps none. A prediction without ``labels`` is the set of its text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from mmzoo.api import Metric, Prediction
from mmzoo_metrics.classification import F1, Accuracy, ratio, zeros


def labels_of(prediction: Prediction) -> set[str]:
    """Return the predicted labels."""
    return {prediction.text} if prediction.labels is None else set(prediction.labels)


class SubsetAccuracy(Accuracy):
    """Compute the share of examples whose labels are exactly the predicted ones. Rows are [right, 1]."""

    def rows(self, predictions: Sequence[Prediction], references: Sequence[Sequence[str]]) -> np.ndarray:
        right = [labels_of(prediction) == set(labels) for prediction, labels in zip(predictions, references, strict=True)]
        return np.column_stack([np.array(right, float), np.ones(len(right))])


class MultiLabelF1(F1):
    """Compute the harmonic mean of precision and recall of each label, and average it: see `F1`; ``micro`` is the score of the
    sums over all labels. Labels that are never predicted nor right are left out."""

    def rows(self, predictions: Sequence[Prediction], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Return [right, predicted, in the reference] of each example by label; raise a `DataError` as `F1` does."""
        sets = [(labels_of(prediction), set(right)) for prediction, right in zip(predictions, references, strict=True)]
        names = sorted(set().union(*(either for pair in sets for either in pair)))
        micro = self.options.average == "micro"
        index = {name: 0 if micro else i for i, name in enumerate(names)}
        counts = zeros(len(sets), 1 if micro else max(1, len(names)), 3)
        for row, (predicted, right) in zip(counts, sets, strict=True):
            for place, labels in enumerate((predicted & right, predicted, right)):
                for label in labels:
                    row[index[label], place] += 1
        return counts.reshape(len(sets), -1)


class MultiLabelMicroF1(MultiLabelF1):
    """Compute F1 of the sums over all labels."""

    class Options(MultiLabelF1.Options):
        average: Literal["macro", "micro", "weighted"] = Field("micro", description="how classes are averaged")


class MeanAveragePrecision(Metric):
    """Average over the labels the mean precision at the rank of each example that has the label (step-wise, as scikit-learn's
    `average_precision_score`; a label that no example has is left out).

    Rows are [precision at its rank, 1] for each label that the example has. Ranks and precisions are those in the whole split,
    also in a resample of the bootstrap, so its interval is approximate.
    """

    compares_all = True

    def rows(self, predictions: Sequence[Prediction], references: Sequence[Sequence[str]]) -> np.ndarray:
        scores = [prediction.scores or dict.fromkeys(labels_of(prediction), 1.0) for prediction in predictions]
        names = sorted(set().union(*references))
        truth = np.array([[name in right for name in names] for right in map(set, references)], float)
        rows = zeros(len(predictions), max(1, len(names)), 2)
        for i, (name, right) in enumerate(zip(names, truth.T, strict=True)):
            own = np.array([each.get(name, 0.0) for each in scores])
            levels, inverse = np.unique(-own, return_inverse=True)  # examples of one score have one rank
            found, taken = (np.bincount(inverse, weights, len(levels)).cumsum() for weights in (right, np.ones(len(own))))
            rows[:, i, 0], rows[:, i, 1] = right * (found / taken)[inverse], right
        return rows.reshape(len(predictions), -1)

    def score(self, totals: np.ndarray) -> np.ndarray:
        precision, count = np.moveaxis(totals.reshape(*totals.shape[:-1], -1, 2), -1, 0)
        return ratio(ratio(precision, count).sum(-1), (count > 0).sum(-1), empty=np.nan)
