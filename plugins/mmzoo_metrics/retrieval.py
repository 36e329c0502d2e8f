"""Score how well inputs find their texts among all texts of a split, and texts their inputs: recall at k and the mean reciprocal
rank (Karpathy and Fei-Fei 2015, https://arxiv.org/abs/1412.2306; Voorhees 1999, https://trec.nist.gov/pubs/trec8/papers/qa_report.pdf).

They read ``vectors``: ``"text"`` and one of an input, of length 1. The text of an example is its first reference; every text
among the references of an input is right for it. Equal texts are one candidate, and so are the inputs of one group
(`Metric.groups`). Candidates as similar as the right one, such as those of blanked inputs, are put in a random order, and the
score is the mean over all orders.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

import numpy as np

from mmzoo.api import DataError, Metric, Prediction
from mmzoo_metrics.classification import ratio

TIE = 1e-6  # similarities that differ by less are equal
BLOCK = 1 << 24  # similarities that are computed at once


class MeanReciprocalRank(Metric):
    """Average the reciprocal rank of the best right text of each input. Rows are [reciprocal rank, 1]."""

    compares_all = True
    from_text: ClassVar[bool] = False

    def rows(self, predictions: Sequence[Prediction], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Return the row of each example.

        Raises:
            DataError: a prediction has no vectors, or an example no reference.
        """
        cases, places = np.unique(self._counts(predictions, references), axis=0, return_inverse=True)
        gains = np.array([self._expected(*case) for case in cases.tolist()])
        return np.column_stack([gains[places.reshape(-1)], np.ones(len(predictions))])

    def score(self, totals: np.ndarray) -> np.ndarray:
        return ratio(totals[..., 0], totals[..., 1], empty=np.nan)

    def gain(self, ranks: np.ndarray) -> np.ndarray:
        """Return what ranks, of any shape, are worth; 1 is the first."""
        return 1 / ranks

    def _expected(self, better: int, equal: int, right: int) -> float:
        """Return the mean gain of the first of ``right`` candidates in a random order with ``equal`` others, after ``better``."""
        before = np.arange(equal + 1)  # how many of the equal ones come first
        reached = np.cumprod(np.append(1.0, (equal - before[:-1]) / (equal + right - before[:-1])))
        return float((reached * right / (equal + right - before)) @ self.gain(better + 1 + before))

    def _counts(self, predictions: Sequence[Prediction], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Return the counts of each example's candidates, as `_compare` does."""
        inputs, texts = _vectors(predictions, references)
        groups = list(range(len(inputs))) if self.groups is None else self.groups
        right: dict[Hashable, set[str]] = {}  # the texts of each input
        for group, own in zip(groups, references, strict=True):
            right.setdefault(group, set()).update(own)
        first_inputs, first_texts = _first(groups), _first([own[0] for own in references])
        place = {text: i for i, text in enumerate(first_texts)}
        answers = {group: [place[text] for text in own if text in place] for group, own in right.items()}
        if not self.from_text:
            return _compare(inputs, texts[list(first_texts.values())], [answers[group] for group in groups])
        found: list[list[int]] = [[] for _ in place]
        for number, group in enumerate(first_inputs):
            for text in answers[group]:
                found[text].append(number)
        return _compare(texts, inputs[list(first_inputs.values())], [found[place[own[0]]] for own in references])


class TextMeanReciprocalRank(MeanReciprocalRank):
    """Average the reciprocal rank of the best right input of each text. Rows are [reciprocal rank, 1]."""

    from_text = True


class Recall1(MeanReciprocalRank):
    """Compute the share of inputs with a right text among the first ``k``. Rows are [found, 1]."""

    k: ClassVar[int] = 1

    def gain(self, ranks: np.ndarray) -> np.ndarray:
        return (ranks <= self.k).astype(float)


class Recall5(Recall1):
    """Compute the share of inputs with a right text among the first 5. Rows are [found, 1]."""

    k = 5


class Recall10(Recall1):
    """Compute the share of inputs with a right text among the first 10. Rows are [found, 1]."""

    k = 10


class TextRecall1(Recall1):
    """Compute the share of texts with a right input among the first ``k``. Rows are [found, 1]."""

    from_text = True


class TextRecall5(TextRecall1):
    """Compute the share of texts with a right input among the first 5. Rows are [found, 1]."""

    k = 5


class TextRecall10(TextRecall1):
    """Compute the share of texts with a right input among the first 10. Rows are [found, 1]."""

    k = 10


def _vectors(predictions: Sequence[Prediction], references: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of inputs and of texts, both [examples, dim], float32."""
    pairs = []
    for i, (prediction, right) in enumerate(zip(predictions, references, strict=True)):
        own = next((name for name in prediction.vectors if name != "text"), None)
        if own is None or "text" not in prediction.vectors:
            raise DataError("retrieval compares vectors of inputs and texts; this task has none: use the task contrastive")
        if not right:
            raise DataError(f"example {i + 1} has no reference")
        pairs.append((prediction.vectors[own], prediction.vectors["text"]))
    inputs, texts = zip(*pairs, strict=True)
    return np.array(inputs, np.float32), np.array(texts, np.float32)


def _first(keys: Sequence[Hashable]) -> dict[Hashable, int]:
    """Return the distinct keys in order, each with the place where it is first."""
    first: dict[Hashable, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    return first


def _compare(queries: np.ndarray, candidates: np.ndarray, right: Sequence[Sequence[int]]) -> np.ndarray:
    """Return for each query how many other candidates are better than the best of its ``right`` ones, how many are as good, and
    how many right ones are as good, [queries, 3]."""
    counts, step = np.empty((len(queries), 3), int), max(1, BLOCK // len(candidates))
    for start in range(0, len(queries), step):
        block = np.nan_to_num(queries[start : start + step] @ candidates.T, nan=-1.0)
        for i, (row, answers) in enumerate(zip(block, right[start : start + step], strict=True), start):
            found, best = row[answers], row[answers].max()
            row[answers] = -np.inf
            counts[i] = np.sum(row > best + TIE), np.sum(np.abs(row - best) <= TIE), np.sum(found >= best - TIE)
    return counts
