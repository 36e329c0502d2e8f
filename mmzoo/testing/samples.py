"""Examples for tests, in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmzoo.data import Dataset, Example


class Sample(Dataset):
    """A few coloured squares with questions and answers, in memory; every split is the same."""

    COLOURS = ("red", "green", "blue")

    def __init__(self, count: int = 8, size: int = 32) -> None:
        super().__init__(None)
        self.count, self.size = count, size

    def splits(self) -> list[str]:
        return ["train", "test"]

    def load(self, split: str) -> Sequence[Example]:
        random = np.random.default_rng(0)
        found = []
        for i in range(self.count):
            colour = self.COLOURS[i % len(self.COLOURS)]
            picture = Image.new("RGB", (self.size, self.size), colour)
            picture.putpixel((int(random.integers(self.size)), int(random.integers(self.size))), (0, 0, 0))
            found.append(Example(f"{split}/{i}", picture, "what color is it" + "?" * (i % 2), (colour,)))
        return found
