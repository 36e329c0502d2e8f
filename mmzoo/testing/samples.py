"""Create examples in memory for tests. `sample_of` decides which examples a part gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmzoo.data.dataset import Dataset
from mmzoo.errors import BadInput, DataError
from mmzoo.interfaces import CAUSAL, Encoder, Example, LanguageSpec, Task
from mmzoo.modalities.reader import NONE, Reader


class Sample(Dataset):
    """Provide a few coloured squares with questions and answers, and a tone of another length for each; all splits are equal.

    Args:
        count: number of examples.
        size: of the squares, in pixels.
        numbers: use numbers as answers.
        modality: of ``probes``.
        probes: inputs that replace the squares and tones.
    """

    COLOURS = ("red", "green", "blue")
    RATE = 16_000

    def __init__(
        self, count: int = 8, size: int = 32, *, numbers: bool = False, modality: str = "image", probes: Sequence[Any] = ()
    ) -> None:
        super().__init__(None)
        self.count, self.size, self.numbers, self.of, self.probes = count, size, numbers, modality, probes

    def splits(self) -> list[str]:
        return ["train", "test"]

    def load(self, split: str) -> Sequence[Example]:
        random = np.random.default_rng(0)
        examples = []
        for i in range(self.count):
            colour = self.COLOURS[i % len(self.COLOURS)]
            picture = Image.new("RGB", (self.size, self.size), colour)
            picture.putpixel((int(random.integers(self.size)), int(random.integers(self.size))), (0, 0, 0))
            seconds = np.arange(self.RATE * (2 + i % 4) // 10) / self.RATE
            tone = 0.5 * np.sin(2 * np.pi * 220 * 2 ** (i % len(self.COLOURS)) * seconds)
            audio = {"array": tone.astype(np.float32), "sampling_rate": self.RATE}
            answer = str(i % len(self.COLOURS) - 0.5) if self.numbers else colour
            example = Example(f"{split}/{i}", picture, "what color is it" + "?" * (i % 2), (answer,), audio)
            examples.append(example.with_inputs(self.of, [self.probes[i % len(self.probes)]]) if self.probes else example)
        return examples


def sample_of(encoder: type[Encoder] | None = None, task: type[Task] | None = None, options: Any = None) -> Dataset:
    """Return a data set that an encoder can read and that a task with ``options`` accepts; its answers are numbers if the task
    needs numbers.

    An encoder of images or audio gets images, or arrays with their sampling rate, if its reader opens them; otherwise the
    `probes` of the reader.

    Raises:
        DataError: the reader opens neither.
    """
    numbers = task is not None and not _takes(task, options, Sample()) and _takes(task, options, Sample(numbers=True))
    if encoder is None or encoder.modality == NONE:
        return Sample(numbers=numbers)
    modality, reader = encoder.modality, encoder.reader
    sample = Sample(numbers=numbers)
    if _reads(reader, sample.load("train")[0].inputs(modality)):
        return sample
    probes = reader.probes()
    if not probes or not _reads(reader, probes):
        raise DataError(f"its reader cannot read a sample of '{modality}'; read must accept what probes returns")
    return Sample(numbers=numbers, modality=modality, probes=probes)


def _reads(reader: Reader, sources: Sequence[Any]) -> bool:
    try:
        for source in sources:
            if source is None:
                return False
            reader.read(source)
    except BadInput:
        return False
    return True


def _takes(task: type[Task], options: Any, sample: Sample) -> bool:
    """Return whether a task accepts the answers of a sample."""
    examples = sample.load("train")
    try:
        learned = {**options.model_dump(), **task.learn(options, examples)}
        instance = task(task.Options(**learned), LanguageSpec(CAUSAL, 8, 8, None, True, 0))
        for example in examples:
            instance.references(example)
    except (DataError, ValueError):
        return False
    return True
