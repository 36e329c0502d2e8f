"""Order the examples of a run, read them, and collate them into batches, as a function of seed and position only.

A position counts the examples of all epochs: example 3 of 10 is at 3, at 13 in the second epoch, at 23 in the third. What a batch
holds depends on the positions of its examples, and on no number of workers, processes or restarts.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from mmzoo.data.bad import readable
from mmzoo.data.collate import Collator
from mmzoo.errors import DataError
from mmzoo.interfaces import Example
from mmzoo.modalities.identity import input_key


def grouped_modality(modalities: Sequence[str]) -> str:
    """Return the modality by which examples are kept together: images if the model takes them, else its first."""
    return "image" if "image" in modalities else modalities[0]


class Shuffled(Sampler[int]):
    """Shuffle the examples in each epoch, and yield their positions. The order depends only on seed and epoch, so a resumed run
    sees the same batches.

    Examples that share their inputs of the modality ``together`` stay next to each other, unless they have none; an empty name
    shuffles all freely. ``epoch`` returns the number of the current one, from 0.
    """

    def __init__(self, examples: Sequence[Example], seed: int, together: str, epoch: Callable[[], int] = lambda: 0) -> None:
        self.count, self.seed, self.epoch = len(examples), seed, epoch
        self.groups: list[list[int]] | None = None
        if together:
            groups: dict[Any, list[int]] = {}
            for i, example in enumerate(examples):
                groups.setdefault(input_key(example.of(together)) or i, []).append(i)
            self.groups = list(groups.values())

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch()
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        if self.groups is None:
            order = torch.randperm(self.count, generator=generator).tolist()
        else:
            order = [i for group in torch.randperm(len(self.groups), generator=generator).tolist() for i in self.groups[group]]
        yield from (epoch * self.count + i for i in order)


class Randomness:
    """Hold states of the random generators of Python, NumPy and torch (on the CPU), apart from those of the program."""

    def __init__(self, *seed: Any) -> None:
        self.numpy = np.random.MT19937()  # the program's is exchanged for it, which costs less than copying its state
        self.python: Any = None
        self.torch = torch.empty(0)
        with self.used(seed):
            pass

    @contextmanager
    def used(self, seed: tuple[Any, ...] | None = None) -> Iterator[None]:
        """Use these states within the block, and the program's afterwards. Without a ``seed`` the block continues where the last
        one ended."""
        numpy: Any = np.random  # whose types lack these functions
        before = random.getstate(), numpy.get_bit_generator(), torch.get_rng_state()
        numpy.set_bit_generator(self.numpy)
        if seed is None:
            random.setstate(self.python)
            torch.set_rng_state(self.torch)
        else:
            number = int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:4], "big")
            random.seed(number)
            np.random.seed(number)
            torch.default_generator.manual_seed(number)
        try:
            yield
        finally:
            self.python, self.torch = random.getstate(), torch.get_rng_state()
            random.setstate(before[0])
            numpy.set_bit_generator(before[1])
            torch.set_rng_state(before[2])


class TrainingBatches(Dataset):
    """Read the examples at the positions of a batch, and collate them.

    Reading and collation use random numbers of their own, of seed and position: they take none from the model's dropout, and a
    random transform gives the same in a data worker, in the main process and in a resumed run.
    """

    def __init__(self, examples: Sequence[Example] | Iterable[Example], collator: Collator, seed: int, count: int) -> None:
        self.collator, self.seed, self.count = collator, seed, count
        self.reader = None if isinstance(examples, Sequence) else StreamReader(examples, seed, skip_bad=collator.skip_bad)
        self.examples, self.randomness = examples, Randomness()

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Any]:
        if not positions:  # other processes have the last examples of the epoch
            return {"names": [], "bad": []}
        bad: list[tuple[str, str]] = []
        if self.reader is not None:
            examples, bad = self.reader.read(positions)
        with self.randomness.used((self.seed, positions[0])):
            if self.reader is None:
                examples = [self._read(*divmod(position, len(self.examples))) for position in positions]  # type: ignore[arg-type]
            batch = self.collator(examples)
        kept = set(batch.get("kept", ()))
        # Ids may be repeated; numbers are not.
        numbers = [str(each.draw[1]) for i, each in enumerate(examples) if i not in kept and each.draw]
        return {**batch, "bad": bad + batch["bad"], "left_out": [name for name, _ in bad] + numbers}

    def _read(self, epoch: int, number: int) -> Example:
        return self.examples[number].in_epoch(self.seed, number, epoch)  # type: ignore[index]


def as_it_is(batch: Any) -> Any:
    """Return a batch that is collated already."""
    return batch


class StreamReader:
    """Read a stream forward, pass after pass, up to the positions that are asked for. It opens no input on the way.

    The stream's own random numbers are apart from all others, so that a shuffled stream has the same order when it is read again
    from its beginning, by another worker or by a resumed run.
    """

    def __init__(self, stream: Iterable[Example], seed: int, *, skip_bad: bool) -> None:
        self.stream, self.seed, self.skip_bad = stream, seed, skip_bad
        self._start()

    def _start(self) -> None:
        self.randomness = Randomness(self.seed, "stream")
        self.epoch, self.number, self.position = -1, 0, -1  # `position` is that of the last example read
        self.rows: Iterator[Example] | None = None

    def read(self, positions: Sequence[int]) -> tuple[list[Example], list[tuple[str, str]]]:
        """Return the examples at ascending positions, and place and error of each that cannot be read.

        Raises:
            DataError: the stream is empty, or an example cannot be read and must be.
        """
        if positions[0] <= self.position:
            self._start()
        examples, bad = [], []
        with self.randomness.used():
            for position in positions:
                while self.position < position:
                    row = self._next()
                if isinstance(row, DataError):
                    bad.append((f"#{self.number}", str(row)))
                else:
                    examples.append(row.in_epoch(self.seed, self.number - 1, self.epoch))
        return examples, bad

    def _next(self) -> Example | DataError:
        """Return the next example or its error, of the next pass where one ends."""
        while True:
            if self.rows is None:
                self.rows, self.number, self.epoch = iter(self.stream), 0, self.epoch + 1
            for row in readable(self.rows, skip_bad=self.skip_bad):
                self.number, self.position = self.number + 1, self.position + 1
                return row
            if not self.number:
                raise DataError("the streamed data set is empty")
            self.rows = None
