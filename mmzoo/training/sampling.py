"""Order the examples of a run, read them, and collate them into batches, as a function of seed and position only.

A position counts the examples of all passes: example 3 of 10 is at 3, at 13 in the second pass, at 23 in the third. What a batch
holds depends on the positions of its examples, and on no number of workers, processes or restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from mmzoo.data.collate import Collator
from mmzoo.data.mixture import StreamMixture, source_numbers
from mmzoo.interfaces import Example
from mmzoo.modalities.identity import input_key
from mmzoo.recipes.data_options import ROUND_ROBIN, DataOptions
from mmzoo.recipes.schema import Recipe
from mmzoo.training.draws import Draws, Turns, in_turn
from mmzoo.training.mixing import Groups, shares_of, stream_shares
from mmzoo.training.randomness import Randomness
from mmzoo.training.streams import MixedReader, StreamReader, TableReader


def grouped_modality(modalities: Sequence[str]) -> str:
    """Return the modality by which examples are kept together: images if the model takes them, else its first."""
    return "image" if "image" in modalities else modalities[0]


class Shuffled(Sampler[int]):
    """Shuffle the examples in each epoch, and yield their positions. The order depends only on seed and epoch, so a resumed run
    sees the same batches.

    With ``groups`` an epoch has as many draws as there are examples, of each group by its share. Each group is walked through in
    an order that is new for each pass over it, so that no example of it is drawn again before all were.

    Examples that share their inputs of the modality ``together`` stay next to each other, unless they have none; an empty name
    shuffles all freely. ``epoch`` returns the number of the current one, from 0.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        seed: int,
        together: str,
        epoch: Callable[[], int] = lambda: 0,
        groups: Groups | None = None,
    ) -> None:
        self.count, self.seed, self.epoch, self.groups = len(examples), seed, epoch, groups
        self.draws = Draws(groups.shares, self.count) if groups else None
        self.blocks: np.ndarray | None = None  # by number of the example, that of the input that it shares
        if together:
            blocks: dict[Any, int] = {}
            keys = (input_key(example.of(together)) or i for i, example in enumerate(examples))
            self.blocks = np.array([blocks.setdefault(key, len(blocks)) for key in keys])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        yield from self._of(self.epoch()).tolist()

    def _of(self, epoch: int) -> np.ndarray:
        return self._mixed(epoch) if self.groups else self._plain(epoch)

    def _plain(self, epoch: int) -> np.ndarray:
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        if self.blocks is None:
            order = torch.randperm(self.count, generator=generator).numpy()
        else:
            order = together(self.blocks, torch.randperm(int(self.blocks.max()) + 1, generator=generator).numpy())
        return epoch * self.count + order

    def _mixed(self, epoch: int) -> np.ndarray:
        """Return the positions of an epoch's draws, from all groups."""
        assert self.groups is not None
        assert self.draws is not None
        before, counts = self.draws.counts(epoch)
        draws = np.concatenate([self._walk(*each) for each in enumerate(zip(before.tolist(), counts.tolist(), strict=True))])
        of = np.repeat(np.arange(len(counts)), counts)
        first = np.ones(len(draws), bool)  # of examples that stay together
        if self.blocks is not None:
            passes, numbers = np.divmod(draws, self.count)
            pieces = np.stack([of, passes, self.blocks[numbers]])
            first[1:] = (pieces[:, 1:] != pieces[:, :-1]).any(0)
        # Only the groups are shuffled here, so that each is walked through in its order.
        slots = np.random.default_rng((self.seed, epoch, 0, 0)).permutation(of[first])
        if self.groups.turns:
            slots = slots[in_turn(np.asarray(self.groups.sources)[slots])]
        return draws[np.argsort(np.argsort(slots, kind="stable")[np.cumsum(first) - 1], kind="stable")]

    def _walk(self, group: int, draws: tuple[int, int]) -> np.ndarray:
        """Return the positions of ``draws``, the first and their number, of a group."""
        assert self.groups is not None
        numbers = self.groups.numbers[group]
        number, left = draws
        found = [np.empty(0, np.int64)]
        while left:
            epoch, place = divmod(number, len(numbers))
            random = np.random.default_rng((self.seed, epoch, group, 1))
            if self.blocks is None:
                order = random.permutation(len(numbers))
            else:
                inverse = np.unique(self.blocks[numbers], return_inverse=True)[1]
                order = together(inverse, random.permutation(int(inverse.max()) + 1))
            found.append(epoch * self.count + numbers[order[place : place + left]])
            number, left = number + len(found[-1]), left - len(found[-1])
        return np.concatenate(found)

    def drawn(self, sources: np.ndarray, epochs: int, more: int) -> list[int]:
        """Return how many examples of each source are drawn in so many epochs and ``more`` draws of the next; ``sources`` has the
        number of each example's."""
        count = int(sources.max()) + 1
        counts = np.zeros(count, np.int64)

        def add(numbers: np.ndarray, times: int = 1) -> None:
            counts[:] += times * np.bincount(sources[numbers % self.count], minlength=count)

        if self.groups is None or self.draws is None:
            add(np.arange(self.count), epochs)
        else:
            for group, total in enumerate(self.draws.counts(epochs)[0].tolist()):
                numbers = self.groups.numbers[group]
                passes, rest = divmod(total, len(numbers))
                add(numbers, passes)
                add(self._walk(group, (total - rest, rest)))
        if more:
            add(self._of(epochs)[:more])
        return counts.tolist()


def together(blocks: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return an order of examples in which their ``blocks`` have this order; those of a block stay as they are."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return np.argsort(rank[blocks], kind="stable")


def open_reader(examples: Iterable[Example], options: DataOptions, seed: int, *, skip_bad: bool) -> StreamReader | MixedReader:
    """Return the reader of a stream, or of a mixture of streams and tables."""
    if not isinstance(examples, StreamMixture):
        return StreamReader(examples, seed, skip_bad=skip_bad, window=options.shuffle_buffer)
    every = len(examples.parts)
    readers = [
        TableReader(part, seed, (own, every))
        if isinstance(part, Sequence)
        else StreamReader(
            part, seed, skip_bad=skip_bad, window=options.shuffle_buffer, name=f"{examples.names[own]}", numbers=(own, every)
        )
        for own, part in enumerate(examples.parts)
    ]
    shares = stream_shares(options, examples.names)
    return MixedReader(readers, Turns(shares, seed, turns=options.weights == ROUND_ROBIN))


def describe_mixture(recipe: Recipe, examples: Any, order: Any, epochs: int, more: int) -> dict[str, Any]:
    """Return the record of a mixture: by data set its number of ``examples``, its ``share`` of the draws, and how many are
    ``drawn`` in so many epochs and ``more`` draws; empty if there is one data set."""
    if isinstance(examples, StreamMixture):
        names, shares = examples.names, stream_shares(recipe.data, examples.names)
        drawn = Turns(shares, recipe.training.seed, turns=recipe.data.weights == ROUND_ROBIN).drawn(more)
        counts: list[Any] = [len(part) if isinstance(part, Sequence) else None for part in examples.parts]
    elif isinstance(examples, Sequence) and len((found := source_numbers(examples))[0]) > 1:
        names, counts, drawn = found[0], np.bincount(found[1]).tolist(), order.drawn(found[1], epochs, more)
        shares = shares_of(recipe.data, names, counts)
    else:
        return {}
    rows = zip(names, counts, shares, drawn, strict=True)
    return {name: {"examples": count, "share": round(share, 6), "drawn": number} for name, count, share, number in rows}


class TrainingBatches(Dataset):
    """Read the examples at the positions of a batch, and collate them.

    Reading and collation use random numbers of their own, of seed and position: they take none from the model's dropout, and a
    random transform gives the same in a data worker, in the main process and in a resumed run.

    A batch of a stream has, as ``stream``, the state from which the examples after it can be read; ``state`` is such a one.
    """

    def __init__(
        self,
        examples: Sequence[Example] | Iterable[Example],
        collator: Collator,
        seed: int,
        count: int,
        options: DataOptions | None = None,
        state: Any = None,
    ) -> None:
        self.collator, self.seed, self.count = collator, seed, count
        self.reader: StreamReader | MixedReader | None = None
        if not isinstance(examples, Sequence):
            self.reader = open_reader(examples, options or DataOptions(), seed, skip_bad=collator.skip_bad)
            self.reader.load_state_dict(state)
        self.examples, self.randomness = examples, Randomness()

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Any]:
        if not positions:  # other processes have the last examples of the epoch
            return {"names": [], "bad": []}
        bad: list[tuple[str, str]] = []
        more = {}
        if self.reader is not None:
            examples, bad = self.reader.read(positions)
            more["stream"] = self.reader.state_dict()
        with self.randomness.used((self.seed, positions[0])):
            if self.reader is None:
                examples = [self._read(*divmod(position, len(self.examples))) for position in positions]  # type: ignore[arg-type]
            batch = self.collator(examples)
        kept = set(batch.get("kept", ()))
        # Ids may be repeated; numbers are not.
        numbers = [str(each.draw[1]) for i, each in enumerate(examples) if i not in kept and each.draw]
        return {**batch, **more, "bad": bad + batch["bad"], "left_out": [name for name, _ in bad] + numbers}

    def _read(self, epoch: int, number: int) -> Example:
        return self.examples[number].in_epoch(self.seed, number, epoch)  # type: ignore[index]


def as_it_is(batch: Any) -> Any:
    """Return a batch that is collated already."""
    return batch
