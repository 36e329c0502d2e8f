"""Load easy-VQA: questions about 64 x 64 pictures of one coloured shape each, with 13 possible answers.

Source: Victor Zhou, https://github.com/vzhou842/easy-VQA, the PyPI package `easy-vqa` 1.0 with its official splits (38,575 and
9,673 questions about 4,000 and 1,000 pictures). Licence: MIT.
"""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from pydantic import Field

from mmzoo.api import DataError, Dataset, Example, Options


class EasyVQA(Dataset):
    """Provide questions as ``text`` with one answer each, in the package's order; an example's id is ``train/123``, its row
    there."""

    class Options(Options):
        limit: int | None = Field(None, ge=1, description="only this many examples of each split, from the first")
        context: int = Field(
            0,
            ge=0,
            le=16,
            description="put up to this many other questions about the same picture, and their answers, before each question; "
            "only those not answered by yes or no: a model can learn from this text without the picture",
        )

    def splits(self) -> list[str]:
        return ["train", "test"]

    def load(self, split: str) -> list[Example]:
        """Return the examples of ``train`` or ``test``; no picture is opened.

        Raises:
            DataError: the package is not installed, or its files are damaged.
        """
        folder = _folder() / "data" / split
        try:
            rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"easy-vqa is damaged ({error}); pip install --force-reinstall easy-vqa") from None
        images = folder / "images"
        before = self._contexts(rows)
        return [
            Example(f"{split}/{i}", str(images / f"{image}.png"), before(i) + question, (answer,))
            for i, (question, answer, image) in enumerate(rows[: self.options.limit])
        ]

    def _contexts(self, rows: list[list[Any]]) -> Callable[[int], str]:
        """Return a function from a row to the text before its question: always the same text, and none for one in eight."""
        informative: dict[Any, list[int]] = defaultdict(list)  # by picture, the rows not answered by yes or no
        for i, (_, answer, image) in enumerate(rows):
            if answer not in ("yes", "no"):
                informative[image].append(i)

        def before(i: int) -> str:
            random = Random(i)
            others = [other for other in informative[rows[i][2]] if other != i]
            count = min(self.options.context, len(others)) if random.random() < 7 / 8 else 0
            return "".join(f"{rows[other][0]} {rows[other][1]} " for other in random.sample(others, count))

        return before


def _folder() -> Path:
    spec = importlib.util.find_spec("easy_vqa")  # finds the folder without running the package
    if spec is None or not spec.submodule_search_locations:
        raise DataError("data set 'easy-vqa' needs the package easy-vqa: pip install \"mmzoo[demo]\"")
    return Path(spec.submodule_search_locations[0])
