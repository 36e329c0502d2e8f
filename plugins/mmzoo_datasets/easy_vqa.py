"""Load easy-VQA: questions about 64 x 64 pictures of one coloured shape each, with 13 possible answers.

Source: Victor Zhou, https://github.com/vzhou842/easy-VQA, the PyPI package `easy-vqa` 1.0 with its official splits (38,575 and
9,673 questions about 4,000 and 1,000 pictures). Licence: MIT.

Targets by task, for a model whose tasks are named after them: ``answer`` of the question; ``shape`` and ``color`` of the picture;
``position``, two numbers: x and y of the shape's centre, from 0 (left, top) to 1. The last three are read from the pixels; the
answers to all 48,248 questions follow from that shape and color.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from mmzoo.api import DataError, Dataset, Example, Options
from mmzoo_datasets.columns import check_targets

TARGETS = ("answer", "shape", "color", "position")
COLORS = {
    "black": 0x000000,
    "blue": 0x0000FF,
    "brown": 0xA52A2A,
    "gray": 0x808080,
    "green": 0x00FF00,
    "red": 0xFF0000,
    "teal": 0x008080,
    "yellow": 0xFFFF00,
}


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
        """Return the examples of ``train`` or ``test``. Pictures are opened only if a task wants what they show.

        Raises:
            DataError: the package is not installed, or its files are damaged; or some tasks have targets here and one has none.
        """
        folder = _folder() / "data" / split
        try:
            rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"easy-vqa is damaged ({error}); pip install --force-reinstall easy-vqa") from None
        images = folder / "images"
        before = self._contexts(rows)
        few = rows[: self.options.limit]
        targets = self._targets(few, images)
        return [
            Example(f"{split}/{i}", f"{images}{os.sep}{image}.png", before(i) + question, targets(answer, image))
            for i, (question, answer, image) in enumerate(few)
        ]

    def _targets(self, rows: list[list[Any]], images: Path) -> Callable[[str, Any], Any]:
        """Return a function from an answer and a picture to the targets: a tuple, or a mapping if tasks are named after them."""
        if not set(self.wanted) & set(TARGETS):
            return lambda answer, image: (answer,)
        wanted = check_targets(self.wanted, TARGETS, "data set 'easy-vqa'", partial=self.partial)
        seen = {image: {} if wanted == ["answer"] else look(images / f"{image}.png") for image in {row[2] for row in rows}}
        return lambda answer, image: {name: (answer,) if name == "answer" else seen[image][name] for name in wanted}

    def _contexts(self, rows: list[list[Any]]) -> Callable[[int], str]:
        """Return a function from a row to the text before its question: always the same text, and none for one in eight."""
        informative: dict[Any, list[int]] = defaultdict(list)  # by picture, the rows not answered by yes or no
        for i, (_, answer, image) in enumerate(rows):
            if answer not in ("yes", "no"):
                informative[image].append(i)

        def before(i: int) -> str:
            if not self.options.context:
                return ""
            random = Random(i)
            others = [other for other in informative[rows[i][2]] if other != i]
            count = min(self.options.context, len(others)) if random.random() < 7 / 8 else 0
            return "".join(f"{rows[other][0]} {rows[other][1]} " for other in random.sample(others, count))

        return before


def look(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the shape, color and position that a picture of the package shows.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), np.int32) @ (0x10000, 0x100, 1)
    except OSError as error:
        raise DataError(f"easy-vqa is damaged ({error}); pip install --force-reinstall easy-vqa") from None
    background = np.sort(pixels[[0, 0, -1, -1], [0, -1, 0, -1]])[1]  # a shape may cover one corner
    rows, columns = np.nonzero(pixels != background)
    filled = len(rows) / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
    inside = set(pixels[rows, columns].tolist())  # the color, and at the edges blends with the background
    height, width = pixels.shape
    # Of the box around it a triangle fills 0.53 to 0.74 here, a circle 0.81 to 0.95.
    return {
        "shape": ("triangle" if filled < 0.77 else "circle" if filled < 0.97 else "rectangle",),
        "color": tuple(name for name, color in COLORS.items() if color in inside),
        "position": (f"{(columns.mean() + 0.5) / width:.4f}", f"{(rows.mean() + 0.5) / height:.4f}"),
    }


def _folder() -> Path:
    spec = importlib.util.find_spec("easy_vqa")  # finds the folder without running the package
    if spec is None or not spec.submodule_search_locations:
        raise DataError("data set 'easy-vqa' needs the package easy-vqa: pip install \"mmzoo[demo]\"")
    return Path(spec.submodule_search_locations[0])
