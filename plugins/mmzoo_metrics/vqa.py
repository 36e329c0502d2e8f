"""Score visual question answering (Antol et al. 2015, https://arxiv.org/abs/1505.00468) as the official evaluation does
(https://visualqa.org/evaluation.html; https://github.com/GT-Vision-Lab/VQA, ``vqaEval.py``)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mmzoo.api import DataError, Metric, Prediction

_CONTRACTIONS = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's
where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll
you'd you'd've you'll you're you've"""
# Each is recognised without any one of its apostrophes. "somebody'd" loses its apostrophe in the original.
_WHOLE = {
    word[:i] + word[i + 1 :]: word for word in _CONTRACTIONS.split() for i, character in enumerate(word) if character == "'"
} | {"somebody'd": "somebodyd"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(i) for i, word in enumerate(_NUMBERS)}}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


class VQAAccuracy(Metric):
    """Average over the answers how far a prediction agrees with the *other* ones: fully if three or more of them equal it, else
    a third for each. Rows are [score, 1].

    That is the official measure, of ten answers a question. With another number of answers it is the same, except that where
    fewer than three others are left, agreeing with all of them is full agreement; a single answer is right or wrong.

    Predictions and answers are always both normalised. (The official script as published leaves both unchanged if the ten
    answers are one string, so that there "Yes." is wrong if all ten are "yes".)
    """

    def rows(self, predictions: Sequence[Prediction], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Return [score, 1] for each example.

        Raises:
            DataError: an example has no answer.
        """
        rows = np.ones((len(predictions), 2))
        for i, (row, prediction, answers) in enumerate(zip(rows, predictions, references, strict=True)):
            if not answers:
                raise DataError(f"example {i + 1} has no answer")
            count = len(answers)
            same = [normal(answer) for answer in answers].count(normal(prediction.text))
            enough = min(3, count - 1)
            if not enough:
                row[0] = same
            else:  # each answer is left out once; `same` times it is one that agrees
                row[0] = (same * min((same - 1) / enough, 1) + (count - same) * min(same / enough, 1)) / count
        return rows

    def score(self, totals: np.ndarray) -> np.ndarray:
        return totals[..., 0] / totals[..., 1]


def normal(answer: str) -> str:
    """Return an answer in the form that is compared: lower case, number words as digits, contractions with their apostrophe.

    Articles are removed, and so are punctuation (it becomes a space, unless it is beside one, or is a comma in a number) and
    full stops outside of numbers.
    """
    text = plain = answer.replace("\n", " ").replace("\t", " ").strip()
    joins = re.search(r"\d,\d", text)
    for mark in _PUNCTUATION:
        plain = plain.replace(mark, "" if joins or f"{mark} " in text or f" {mark}" in text else " ")
    plain = re.sub(r"\.(?!\d)", "", plain)
    words = [_DIGITS.get(word, word) for word in plain.lower().split()]
    return " ".join(_WHOLE.get(word, word) for word in words if word not in _ARTICLES)
