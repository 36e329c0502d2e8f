"""Score captions: BLEU (Papineni et al. 2002, https://aclanthology.org/P02-1040), ROUGE-L (Lin 2004,
https://aclanthology.org/W04-1013) and CIDEr-D (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726), as pycocoevalcap
computes them for COCO (https://github.com/salaniz/pycocoevalcap), over the tokens of `mmzoo_metrics.ptb`; no Java is needed.

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

from mmzoo.api import DataError, Metric
from mmzoo_metrics.ptb import tokenize


def tokens_of(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Return predictions [examples], and each example's references, as tokens joined by spaces.

    Raises:
        DataError: an example has no reference.
    """
    for i, (_, right) in enumerate(zip(predictions, references, strict=True)):
        if not right:
            raise DataError(f"example {i + 1} has no reference")
    flat = iter(tokenize([caption for right in references for caption in right]))
    return tokenize(predictions), [tuple(islice(flat, len(right))) for right in references]


class CaptionMetric(Metric):
    """Compute a score of tokenized captions."""

    def rows(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Tokenize, and return the statistics of each example as `rows_of_tokens` defines them.

        Raises:
            DataError: an example has no reference.
        """
        return self.rows_of_tokens(*tokens_of(predictions, references))

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
        found = np.zeros((len(predictions), 2 + 2 * self.order))
        for row, prediction, right in zip(found, predictions, references, strict=True):
            said, lengths = len(prediction.split()), [len(reference.split()) for reference in right]
            row[:2] = said, min(lengths, key=lambda length: (abs(length - said), length))
        for n, grams in enumerate(_ngrams(predictions, references, self.order)):
            best = np.zeros(len(grams.said))
            np.maximum.at(best, grams.match, grams.counts[grams.matched])
            found[:, 2 + n] = grams.sums(grams.said_counts)
            found[:, 2 + self.order + n] = grams.sums(np.minimum(grams.said_counts, best))
        return found

    def score(self, totals: np.ndarray) -> np.ndarray:
        said, wanted = totals[..., 0], totals[..., 1]
        guessed, right = totals[..., 2 : 2 + self.order], totals[..., 2 + self.order :]
        # The original keeps clear of zero by these amounts.
        precision = ((right + 1e-15) / (guessed + 1e-9)).prod(-1) ** (1 / self.order)
        ratio = (said + 1e-15) / (wanted + 1e-9)
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
        found = []
        for prediction, right in zip(predictions, references, strict=True):
            # By single spaces, as the original: no words are one empty word, and equal to no words.
            said = prediction.split(" ")
            wanted = [reference.split(" ") for reference in right]
            common = [_common(reference, said) for reference in wanted]
            precision = max(common) / len(said)
            recall = max(length / len(reference) for length, reference in zip(common, wanted, strict=True))
            above = (1 + self.beta**2) * precision * recall
            found.append(above / (recall + self.beta**2 * precision) if above else 0.0)
        return np.array(found)


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
            said, wanted = grams.said_counts * idf[grams.said_grams], grams.counts * idf[grams.grams]
            norms = np.sqrt(grams.sums(said**2))[item] * np.sqrt(np.bincount(grams.captions, wanted**2, len(item)))
            both = np.minimum(said[grams.match], wanted[grams.matched]) * wanted[grams.matched]
            cosines += np.bincount(grams.captions[grams.matched], both, len(item)) / np.where(norms > 0, norms, 1) / self.order
            if n == 2:  # the original takes the number of word pairs for the length
                lengths = grams.sums(grams.said_counts), np.bincount(grams.captions, grams.counts, len(item))
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

    First the entries of predictions: ``said`` [said] (example and n-gram as one number, ascending), ``said_grams`` and
    ``said_counts``. Then those of references: ``captions`` [wanted] (the index of the reference among all), ``grams`` and
    ``counts``. The entries ``matched`` [matches] of references are in their example's prediction too, as its entries ``match``.
    """

    examples: int
    kinds: int
    said: np.ndarray
    said_counts: np.ndarray
    captions: np.ndarray
    grams: np.ndarray
    counts: np.ndarray
    matched: np.ndarray
    match: np.ndarray

    @property
    def said_grams(self) -> np.ndarray:
        return self.said % self.kinds

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sums of ``values`` [said] by example."""
        return np.bincount(self.said // self.kinds, values, self.examples)


def _items(references: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the example of each reference, [references]."""
    return np.repeat(np.arange(len(references)), [len(right) for right in references])


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
        said, wanted = keys[:first], keys[first:] - examples * kinds
        asked = item[wanted // kinds] * kinds + wanted % kinds
        place = np.minimum(np.searchsorted(said, asked), max(first - 1, 0))
        matched = np.flatnonzero(said[place] == asked) if first else np.zeros(0, np.int64)
        yield _Grams(
            examples,
            kinds,
            said,
            counts[:first].astype(float),
            wanted // kinds,
            wanted % kinds,
            counts[first:].astype(float),
            matched,
            place[matched],
        )
