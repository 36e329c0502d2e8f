"""Order the examples of an epoch as a function of seed and epoch only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset, Sampler, get_worker_info
from transformers import TrainerState

from mmzoo.interfaces import Example
from mmzoo.modalities.identity import input_key


def grouped_modality(modalities: Sequence[str]) -> str:
    """Return the modality by which examples are kept together: images if the model takes them, else its first."""
    return "image" if "image" in modalities else modalities[0]


class Shuffled(Sampler[int]):
    """Shuffle the examples in each epoch. The order depends only on seed and epoch, so a resumed run sees the same batches.

    Examples that share their inputs of the modality ``together`` stay next to each other, unless they have none; an empty name
    shuffles all freely.
    """

    def __init__(self, examples: Sequence[Example], seed: int, together: str, state: TrainerState) -> None:
        self.count, self.seed, self.state = len(examples), seed, state
        self.groups: list[list[int]] | None = None
        if together:
            groups: dict[Any, list[int]] = {}
            for i, example in enumerate(examples):
                groups.setdefault(input_key(example.of(together)) or i, []).append(i)
            self.groups = list(groups.values())

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        epoch = int((self.state.epoch or 0) + 1e-6)
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        if self.groups is None:
            yield from torch.randperm(self.count, generator=generator).tolist()
        else:
            for group in torch.randperm(len(self.groups), generator=generator).tolist():
                yield from self.groups[group]


class StreamedExamples(IterableDataset):
    """Iterate over a streamed split; each data worker gets every n-th example."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self.examples = examples

    def __iter__(self) -> Iterator[Example]:
        worker = get_worker_info()
        if worker is None:
            return iter(self.examples)
        return islice(iter(self.examples), worker.id, None, worker.num_workers)
