"""Generate series and what they do."""

import numpy as np
from pydantic import Field

from mmzoo.api import Dataset, Example, Options

SHAPES = {"rise": lambda t: 4 * t, "fall": lambda t: -4 * t, "swing": lambda t: 2 * np.sin(12 * t)}


class Trends(Dataset):
    """Provide noisy series of 16 to 64 steps; the target is what each does."""

    modality = "series"

    class Options(Options):
        count: int = Field(600, ge=1, le=1_000_000, description="examples of each split")

    def splits(self):
        return ["train", "test"]

    def load(self, split):
        random = np.random.default_rng(self.splits().index(split))
        return [self._example(f"{split}/{i}", list(SHAPES)[i % len(SHAPES)], random) for i in range(self.options.count)]

    def _example(self, name, target, random):
        times = np.linspace(0, 1, random.integers(16, 65))
        series = SHAPES[target](times) + 0.3 * random.standard_normal(len(times))
        return Example(name, text="what does it do?", targets=(target,), inputs={"series": series.astype(np.float32)})
