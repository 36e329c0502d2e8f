"""Run METEOR 1.5 (Denkowski and Lavie 2014, https://aclanthology.org/W14-3348), the official program, which pycocoevalcap
contains: it needs Java.

The official program is what papers report. NLTK's METEOR is the older formula of 2005 without function words and paraphrases,
gives other numbers, and needs WordNet from the network.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmzoo.api import DataError
from mmzoo_metrics.caption import CaptionMetric

# English, for the task of ranking: weights of exact, stem, synonym and paraphrase matches, and the paper's parameters.
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75


class Meteor(CaptionMetric):
    """Compute METEOR over the whole set. Rows are the program's 23 statistics of a caption against its closest reference.

    They are: words, and function words among them, of both texts; by each kind of match, the content and the function words
    matched of both; chunks, of which a perfect caption has none; and matched words of both.

    Raises:
        DataError: Java or pycocoevalcap is missing.
    """

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        found = importlib.util.find_spec("pycocoevalcap")
        if found is None or shutil.which("java") is None:
            lacks = "pycocoevalcap" if found is None else "Java (the command 'java')"
            fix = (
                'pip install "mmzoo[meteor]"'
                if found is None
                else "install a Java runtime, such as Debian's default-jre-headless"
            )
            raise DataError(
                f"metric 'meteor' runs the official METEOR 1.5 and needs {lacks}: {fix}; cider-d and bleu-4 need neither"
            )
        self._folder = Path(next(iter(found.submodule_search_locations or ()))) / "meteor"

    def rows_of_tokens(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        # As pycocoevalcap asks; the program reads "|||" as a bound between texts.
        asked = [
            " ||| ".join(["SCORE", *right, said.replace("|||", "").replace("  ", " ")])
            for said, right in zip(predictions, references, strict=True)
        ]
        command = ["java", "-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
        text = "".join(line + "\n" for line in asked)
        ran = subprocess.run(command, cwd=self._folder, input=text, capture_output=True, encoding="utf-8", check=False)
        lines = ran.stdout.splitlines()
        if ran.returncode or len(lines) != len(asked):
            raise DataError(f"METEOR gave {len(lines)} answers to {len(asked)} captions: {ran.stderr.strip()[-500:]}")
        found = np.array([line.split() for line in lines], float)
        whole = (found[:, 20] == 1) & (found[:, 21:23] == found[:, :2]).all(1)
        found[whole, 20] = 0  # as the program does when it adds captions up
        return found

    def score(self, totals: np.ndarray) -> np.ndarray:
        words, function = totals[..., 0:2], totals[..., 2:4]
        by_kind = totals[..., 4:20].reshape(*totals.shape[:-1], 4, 2, 2)  # kind of match, content or function word, which text
        matched = np.einsum("k,c,...kct->...t", WEIGHTS, np.array([DELTA, 1 - DELTA]), by_kind)
        weighed = DELTA * (words - function) + (1 - DELTA) * function
        precision, recall = np.moveaxis(matched / np.where(weighed > 0, weighed, 1), -1, 0)
        chunks, covered = totals[..., 20], totals[..., 21:23]
        below = ALPHA * precision + (1 - ALPHA) * recall
        mean = precision * recall / np.where(below > 0, below, 1)
        parts = chunks / np.where(covered.sum(-1) > 0, covered.mean(-1), 1)
        return mean * (1 - GAMMA * parts**BETA)
