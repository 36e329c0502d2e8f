"""Examples for tests, in memory. `sample_of` is the one place that says what a modality's examples are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmzoo.data import Dataset, Example
from mmzoo.errors import DataError
from mmzoo.inputs import NONE


class Sample(Dataset):
    """A few coloured squares, and beside each a tone of unequal length, with questions and answers, in memory; every split is
    the same."""

    COLOURS = ("red", "green", "blue")
    RATE = 16_000

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
            seconds = np.arange(self.RATE * (2 + i % 4) // 10) / self.RATE
            tone = 0.5 * np.sin(2 * np.pi * 220 * 2 ** (i % len(self.COLOURS)) * seconds)
            audio = {"array": tone.astype(np.float32), "sampling_rate": self.RATE}
            found.append(Example(f"{split}/{i}", picture, "what color is it" + "?" * (i % 2), (colour,), audio))
        return found


def sample_of(modality: str) -> Dataset:
    """A data set of examples that an encoder of ``modality`` can read (any, if it reads nothing).

    Raises:
        DataError: there is none of that modality.
    """
    if modality in (NONE, "image", "audio"):
        return Sample()
    raise DataError(f"the kit has no examples of modality '{modality}'")
