"""Open several data sets, each for the tasks that it serves, and read them as one."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

from mmzoo.data.dataset import Dataset
from mmzoo.data.open import load_split, open_dataset, open_for, takes_default, target_of
from mmzoo.errors import DataError, MmzooError, UnknownName
from mmzoo.interfaces import Example
from mmzoo.recipes.schema import PartConfig, Recipe

Spec = str | PartConfig | Dataset
# One data set, or several: by the task that each is for, or for every task that they have targets of.
Specs = Spec | Sequence[Spec] | Mapping[str, Spec | Sequence[Spec]]

VALIDATION_SPLITS = ("validation", "valid", "val", "dev", "test")
_SPLIT = re.compile(r"[A-Za-z_][\w-]*")


@dataclass(frozen=True)
class Source:
    """Hold one data set of a run.

    Attributes:
        name: its name in `DataOptions.weights`: that of the task if it is for one, else its own; unique in a run.
        spec: as the user gave it, without the split.
        split: the split to read; None if none was named.
        task: the only task that it is for; None for every task that it has targets of.
        several: whether it is one of several.
    """

    name: str
    spec: Spec
    dataset: Dataset
    split: str | None = None
    task: str | None = None
    several: bool = False

    @property
    def title(self) -> str:
        """Return what messages call it."""
        return type(self.dataset).__name__ if isinstance(self.spec, Dataset) else PartConfig.of(self.spec, "dataset").use

    def load(self, recipe: Recipe, split: str) -> Sequence[Example] | Iterable[Example]:
        """Return the examples of a split, with their targets by task where this data set is for some tasks only.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        examples = load_split(self.dataset, split)
        if self.task is None or takes_default(recipe, self.task):
            return examples
        target = target_of(recipe, self.task)
        return _SequenceOf(examples, target) if isinstance(examples, Sequence) else _StreamOf(examples, target)

    def check_serves(self, recipe: Recipe, example: Example | None) -> None:
        """Check that a task reads the targets of the first example of a data set that is one of several.

        Raises:
            DataError: no task does, or its targets do not say which task they are for.
        """
        if not self.several or self.task is not None or example is None or len(recipe.tasks) == 1:
            return
        targets = {target_of(recipe, name): name for name in recipe.tasks}
        tasks = ", ".join(recipe.tasks)
        if not isinstance(example.targets, Mapping):
            raise DataError(
                f"data set '{self.title}' does not say which task its targets are for; write TASK={self.title} "
                f"(datasets={{TASK: ...}}) with one of the tasks {tasks}"
            )
        if not set(example.targets) & set(targets):
            raise DataError(
                f"no task reads data set '{self.title}': its targets are {', '.join(example.targets)}, and the tasks {tasks}; "
                f"write TASK={self.title}, or leave it out"
            )


def open_sources(recipe: Recipe, specs: Specs) -> list[Source]:
    """Open one or several data sets for the tasks of a recipe.

    Args:
        specs: names, paths, ids, configurations or objects; each may end in ``:SPLIT``.

    Raises:
        UnknownName: there is no such data set or task. BadRecipe: an option is wrong. DataError: none is given, a path does not
        exist, or a task is served by none.
    """
    pairs = _pairs(specs)
    if not pairs:
        raise DataError("no data set is given; name one with --dataset (dataset=...)")
    if unknown := [task for task, _ in pairs if task is not None and task not in recipe.tasks]:
        raise UnknownName(f"datasets: there is no task '{unknown[0]}'; the tasks are {', '.join(recipe.tasks)}")
    if all(task is not None for task, _ in pairs) and (without := [t for t in recipe.tasks if t not in dict(pairs)]):
        raise DataError(f"no data set serves the task '{without[0]}'; add --dataset {without[0]}=NAME, or remove the task")
    sources: list[Source] = []
    for task, given in pairs:
        spec, split = split_of(given)
        if len(pairs) == 1 and task is None:
            dataset = open_for(recipe, spec)
        else:
            wanted = [target_of(recipe, name) for name in recipe.tasks if task in (None, name)]
            dataset = open_dataset(spec, () if takes_default(recipe, next(iter(recipe.tasks))) else tuple(wanted))
            dataset.partial = task is None
        source = Source("", spec, dataset, split, task, len(pairs) > 1)
        name = source.title if task is None else task
        count = sum(other.name.partition("#")[0] == name for other in sources)
        sources.append(replace(source, name=f"{name}#{count + 1}" if count else name))
    return sources


def split_of(spec: Spec) -> tuple[Spec, str | None]:
    """Return a data set and the split that its name ends with, such as ``easy-vqa:test``; None if it names none."""
    if isinstance(spec, str):
        head, colon, tail = spec.rpartition(":")
        if colon and head and _SPLIT.fullmatch(tail):
            try:
                if tail in open_dataset(head).splits():
                    return head, tail
            except MmzooError:  # the tail is a variant, such as a path
                pass
    return spec, None


def _pairs(specs: Specs) -> list[tuple[str | None, Spec]]:
    if isinstance(specs, Mapping):
        return [(task, spec) for task, given in specs.items() for _, spec in _pairs(given)]
    if isinstance(specs, Sequence) and not isinstance(specs, str | Dataset):
        return [(None, spec) for spec in specs]
    return [(None, specs)]


class _SequenceOf(Sequence[Example]):
    """Read examples with the targets of one task, under its key."""

    def __init__(self, examples: Sequence[Example], target: str) -> None:
        self.examples, self.target = examples, target

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        return _under(self.target, self.examples[index])


class _StreamOf(Iterable[Example]):
    """Iterate over examples with the targets of one task, under its key."""

    def __init__(self, examples: Iterable[Example], target: str) -> None:
        self.examples, self.target = examples, target

    def __iter__(self) -> Iterator[Example]:
        return map(partial(_under, self.target), self.examples)  # not a generator: it would end at a row that cannot be read


def _under(target: str, example: Example) -> Example:
    targets: Any = example.for_task(target).targets
    return replace(example, targets={target: targets})


class Mixture(Sequence[Example]):
    """Read several sequences of examples, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Example]]) -> None:
        self.parts = list(parts)
        self.ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: Any) -> Any:
        number = range(len(self))[index]
        part = bisect_right(self.ends, number)
        return self.parts[part][number - self.ends[part]]
