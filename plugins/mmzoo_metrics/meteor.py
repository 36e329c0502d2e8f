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
        package = importlib.util.find_spec("pycocoevalcap")
        needs = "metric 'meteor' runs the official METEOR 1.5 and needs"
        if package is None:
            raise DataError(f'{needs} pycocoevalcap: pip install "mmzoo[meteor]"; cider-d and bleu-4 do not need it')
        if shutil.which("java") is None:
            raise DataError(
                f"{needs} Java (the command 'java'): install a Java runtime, such as Debian's default-jre-headless; "
                "cider-d and bleu-4 do not need it"
            )
        self._folder = Path(next(iter(package.submodule_search_locations or ()))) / "meteor"

    def rows_of_tokens(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        # In the form of pycocoevalcap; the program reads "|||" as a separator of texts.
        requests = [
            " ||| ".join(["SCORE", *captions, prediction.replace("|||", "").replace("  ", " ")])
            for prediction, captions in zip(predictions, references, strict=True)
        ]
        command = ["java", "-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
        text = "".join(line + "\n" for line in requests)
        done = subprocess.run(command, cwd=self._folder, input=text, capture_output=True, encoding="utf-8", check=False)
        lines = done.stdout.splitlines()
        if done.returncode or len(lines) != len(requests):
            raise DataError(f"METEOR gave {len(lines)} answers to {len(requests)} captions: {done.stderr.strip()[-500:]}")
        rows = np.array([line.split() for line in lines], float)
        perfect = (rows[:, 20] == 1) & (rows[:, 21:23] == rows[:, :2]).all(1)
        rows[perfect, 20] = 0  # the program does the same when it adds captions up
        return rows

    def score(self, totals: np.ndarray) -> np.ndarray:
        words, function = totals[..., 0:2], totals[..., 2:4]
        by_kind = totals[..., 4:20].reshape(*totals.shape[:-1], 4, 2, 2)  # kind of match, content or function word, which text
        matched = np.einsum("k,c,...kct->...t", WEIGHTS, np.array([DELTA, 1 - DELTA]), by_kind)
        weighted = DELTA * (words - function) + (1 - DELTA) * function
        precision, recall = np.moveaxis(matched / np.where(weighted > 0, weighted, 1), -1, 0)
        chunks, covered = totals[..., 20], totals[..., 21:23]
        denominator = ALPHA * precision + (1 - ALPHA) * recall
        mean = precision * recall / np.where(denominator > 0, denominator, 1)
        fragmentation = chunks / np.where(covered.sum(-1) > 0, covered.mean(-1), 1)
        return mean * (1 - GAMMA * fragmentation**BETA)
