"""Score captions: BLEU (Papineni et al. 2002, https://aclanthology.org/P02-1040), ROUGE-L (Lin 2004,
https://aclanthology.org/W04-1013) and CIDEr-D (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726), as pycocoevalcap
computes them for COCO (https://github.com/salaniz/pycocoevalcap), over the tokens of `mmzoo_metrics.ptb`; no Java is needed.
Captions in scripts without spaces are compared by characters, and the score's `note` says so.

The references of an *example* are one item, as those of an image are in COCO. In a data set with one example for each caption
of an image, each caption is therefore measured against its own references only; list all captions as the targets of one example
to measure against all. The bootstrap resamples by image either way.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import ClassVar

import numpy as np

from mmzoo.api import DataError, Metric, Prediction
from mmzoo_metrics.characters import has_characters, tokenize_characters
from mmzoo_metrics.ptb import tokenize


def tokens_of(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[Sequence[str], list[tuple[str, ...]], int]:
    """Return predictions [examples], and each example's references, as tokens joined by spaces; and in how many they are
    characters (`has_characters`).

    Raises:
        DataError: an example has no reference.
    """
    for i, (_, captions) in enumerate(zip(predictions, references, strict=True)):
        if not captions:
            raise DataError(f"example {i + 1} has no reference")
    # All captions of one kind are read together, since the next line can decide how one ends.
    rows: list[tuple[str, ...]] = [()] * len(predictions)
    kinds = [has_characters(captions) for captions in references]
    for kind, read in ((False, tokenize), (True, tokenize_characters)):
        own = [i for i, found in enumerate(kinds) if found == kind]
        flat = iter(read([caption for i in own for caption in references[i]]))
        for i, prediction in zip(own, read([predictions[i] for i in own]), strict=True):
            rows[i] = (prediction, *islice(flat, len(references[i])))
    return [row[0] for row in rows], [row[1:] for row in rows], sum(kinds)


class CaptionMetric(Metric):
    """Compute a score of tokenized captions."""

    def rows(self, predictions: Sequence[Prediction], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Return the statistics of each example, as `rows_of_tokens` defines them.

        Raises:
            DataError: an example has no reference.
        """
        texts, wanted, count = tokens_of([prediction.text for prediction in predictions], references)
        some = "" if count == len(texts) else f" in {count} of {len(texts)} examples, words in the others"
        self.note = f"unit: characters, of scripts without spaces{some}" if count else ""
        return self.rows_of_tokens(texts, wanted)

    @abstractmethod
    def rows_of_tokens(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Return the statistics of each example; captions are tokens joined by spaces."""


class _Mean(CaptionMetric):
    """Average a score over the examples. Rows are [score, 1]."""

    def rows_of_tokens(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        return np.column_stack([self.scores(predictions, references), np.ones(len(predictions))])

    @abstractmethod
    def scores(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Return a score for each example, [examples]."""

    def score(self, totals: np.ndarray) -> np.ndarray:
        return totals[..., 0] / totals[..., 1]


class Bleu1(CaptionMetric):
    """Compute BLEU over the whole set: the geometric mean of the clipped n-gram precisions, times the brevity penalty.

    The penalty is against the closest reference lengths (the shorter of two). Rows are [prediction tokens, reference tokens,
    n-grams by n, those that a reference has by n].
    """

    order: ClassVar[int] = 1

    def rows_of_tokens(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        rows = np.zeros((len(predictions), 2 + 2 * self.order))
        for row, prediction, captions in zip(rows, predictions, references, strict=True):
            length, lengths = len(prediction.split()), [len(caption.split()) for caption in captions]
            row[:2] = length, min(lengths, key=lambda other: (abs(other - length), other))
        for n, grams in enumerate(_ngrams(predictions, references, self.order)):
            best = np.zeros(len(grams.predicted))
            np.maximum.at(best, grams.match, grams.counts[grams.matched])
            rows[:, 2 + n] = grams.sums(grams.predicted_counts)
            rows[:, 2 + self.order + n] = grams.sums(np.minimum(grams.predicted_counts, best))
        return rows

    def score(self, totals: np.ndarray) -> np.ndarray:
        length, reference_length = totals[..., 0], totals[..., 1]
        predicted, matched = totals[..., 2 : 2 + self.order], totals[..., 2 + self.order :]
        # The original adds these amounts against a division by zero.
        precision = ((matched + 1e-15) / (predicted + 1e-9)).prod(-1) ** (1 / self.order)
        ratio = (length + 1e-15) / (reference_length + 1e-9)
        return precision * np.exp(np.minimum(1 - 1 / ratio, 0))


class Bleu2(Bleu1):
    __doc__ = Bleu1.__doc__
    order = 2


class Bleu3(Bleu1):
    __doc__ = Bleu1.__doc__
    order = 3


class Bleu4(Bleu1):
    __doc__ = Bleu1.__doc__
    order = 4


class RougeL(_Mean):
    """Average the F-score (beta 1.2) of the longest common subsequence over the examples. Rows are [score, 1].

    Precision and recall are each the best over the references, not those of one reference.
    """

    beta: ClassVar[float] = 1.2

    def scores(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        scores = []
        for prediction, captions in zip(predictions, references, strict=True):
            # By single spaces, as in the original: an empty text is one empty word, and equal to another empty text.
            words = prediction.split(" ")
            wanted = [caption.split(" ") for caption in captions]
            common = [_common(reference, words) for reference in wanted]
            precision = max(common) / len(words)
            recall = max(length / len(reference) for length, reference in zip(common, wanted, strict=True))
            numerator = (1 + self.beta**2) * precision * recall
            scores.append(numerator / (recall + self.beta**2 * precision) if numerator else 0.0)
        return np.array(scores)


class CiderD(_Mean):
    """Average the similarity of TF-IDF vectors of n-grams (n to 4) over the examples, times 10. Rows are [score, 1].

    It is the cosine, clipped to the reference's counts, with a Gaussian penalty (sigma 6) on a difference in length. Document
    frequencies are those of the measured set's references, one document an example; bootstrap resamples keep them. A set of one
    example scores 0.
    """

    perfect = 10.0  # of captions of four words or more
    order: ClassVar[int] = 4
    sigma: ClassVar[float] = 6.0

    def scores(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        count = len(predictions)
        item = _items(references)
        size = np.log(float(count))
        cosines = np.zeros(len(item))
        lengths = np.zeros(count), np.zeros(len(item))
        for n, grams in enumerate(_ngrams(predictions, references, self.order), 1):
            documents = np.bincount(
                np.unique(np.column_stack([item[grams.captions], grams.grams]), axis=0)[:, 1], minlength=grams.kinds
            )
            idf = size - np.log(np.maximum(documents, 1))
            weights, wanted = grams.predicted_counts * idf[grams.predicted_grams], grams.counts * idf[grams.grams]
            norms = np.sqrt(grams.sums(weights**2))[item] * np.sqrt(np.bincount(grams.captions, wanted**2, len(item)))
            both = np.minimum(weights[grams.match], wanted[grams.matched]) * wanted[grams.matched]
            cosines += np.bincount(grams.captions[grams.matched], both, len(item)) / np.where(norms > 0, norms, 1) / self.order
            if n == 2:  # the original takes the number of word pairs for the length
                lengths = grams.sums(grams.predicted_counts), np.bincount(grams.captions, grams.counts, len(item))
        penalty = np.exp(-((lengths[0][item] - lengths[1]) ** 2) / (2 * self.sigma**2))
        return 10 * np.bincount(item, cosines * penalty, count) / np.bincount(item, minlength=count)


def _common(one: list[str], other: list[str]) -> int:
    """Return the length of the longest common subsequence, with all of ``one`` as the bits of an integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << i
    everything = (1 << len(one)) - 1
    row = everything
    for word in other:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & everything
    return len(one) - row.bit_count()


@dataclass
class _Grams:
    """Hold the n-grams of one n. Each different n-gram of a caption is an entry.

    First the entries of predictions: ``predicted`` [predicted] (example and n-gram as one number, ascending),
    ``predicted_grams`` and ``predicted_counts``. Then those of references: ``captions`` [wanted] (the index of the reference
    among all), ``grams`` and ``counts``. The entries ``matched`` [matches] of references are in their example's prediction
    too, as its entries ``match``.
    """

    examples: int
    kinds: int
    predicted: np.ndarray
    predicted_counts: np.ndarray
    captions: np.ndarray
    grams: np.ndarray
    counts: np.ndarray
    matched: np.ndarray
    match: np.ndarray

    @property
    def predicted_grams(self) -> np.ndarray:
        return self.predicted % self.kinds

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sums of ``values`` [predicted] by example."""
        return np.bincount(self.predicted // self.kinds, values, self.examples)


def _items(references: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the example of each reference, [references]."""
    return np.repeat(np.arange(len(references)), [len(captions) for captions in references])


def _ngrams(predictions: Sequence[str], references: Sequence[Sequence[str]], order: int) -> Iterator[_Grams]:
    """Yield the n-grams for n from 1 to ``order``."""
    examples, item = len(predictions), _items(references)
    vocabulary: dict[str, int] = {}
    captions = [caption.split() for caption in chain(predictions, *references)]
    words = np.array([vocabulary.setdefault(word, len(vocabulary)) for caption in captions for word in caption], np.int64)
    owner = np.repeat(np.arange(len(captions)), [len(caption) for caption in captions])
    grams = words
    for n in range(order):
        if n:  # each n-gram with the word behind it, where that is of the same caption
            inside = owner[n:] == owner[: len(owner) - n]
            longer = grams[: len(grams) - 1] * len(vocabulary) + words[n:]
            grams = np.zeros(len(longer), np.int64)
            grams[inside] = np.unique(longer[inside], return_inverse=True)[1]
        else:
            inside = np.ones(len(words), bool)
        kinds = int(grams.max(initial=0)) + 1
        keys, counts = np.unique(owner[: len(grams)][inside] * kinds + grams[inside], return_counts=True)
        first = int(np.searchsorted(keys, examples * kinds))
        predicted, wanted = keys[:first], keys[first:] - examples * kinds
        sought = item[wanted // kinds] * kinds + wanted % kinds
        place = np.minimum(np.searchsorted(predicted, sought), max(first - 1, 0))
        matched = np.flatnonzero(predicted[place] == sought) if first else np.zeros(0, np.int64)
        yield _Grams(
            examples,
            kinds,
            predicted,
            counts[:first].astype(float),
            wanted // kinds,
            wanted % kinds,
            counts[first:].astype(float),
            matched,
            place[matched],
        )
