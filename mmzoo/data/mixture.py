"""Open several data sets, each for the tasks that it serves, and read them as one."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from os import PathLike
from typing import Any

import numpy as np

from mmzoo.data.bad import Chosen
from mmzoo.data.dataset import Dataset
from mmzoo.data.open import load_split, open_dataset, open_for, takes_default, target_of
from mmzoo.errors import BadRecipe, DataError, MmzooError, UnknownName
from mmzoo.interfaces import Example
from mmzoo.recipes.schema import PartConfig, Recipe

Spec = str | PartConfig | Dataset | Mapping[str, Any]  # a mapping has the keys of a `PartConfig`: `use`, and options
# One data set, or several: by the task that each is for, or (under the key None) for every task that they have targets of.
Specs = Spec | Sequence[Spec] | Mapping[str | None, Spec | Sequence[Spec]]

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
    spec: str | PartConfig | Dataset
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

    def tasks(self, recipe: Recipe, example: Example | None) -> set[str]:
        """Return the tasks that read the targets of a data set whose first example this is.

        Raises:
            DataError: it is one of several, and none does, or its targets do not say which task they are for.
        """
        if not self.several or self.task is not None or example is None or len(recipe.tasks) == 1:
            return set(recipe.tasks) if self.task is None else {self.task}
        tasks = ", ".join(recipe.tasks)
        if not isinstance(example.targets, Mapping):
            raise DataError(
                f"data set '{self.title}' does not say which task its targets are for; write TASK={self.title} "
                f"(datasets={{TASK: ...}}) with one of the tasks {tasks}"
            )
        served = {name for name in recipe.tasks if target_of(recipe, name) in example.targets}
        if not served:
            raise DataError(
                f"no task reads data set '{self.title}': its targets are {', '.join(example.targets)}, and the tasks {tasks}; "
                f"write TASK={self.title}, or leave it out"
            )
        return served


def no_source(task: str) -> DataError:
    """Return the error for a task that no data set serves."""
    return DataError(
        f"no data set serves the task '{task}'; add --dataset {task}=NAME (datasets={{'{task}': ...}}), or remove the task"
    )


def open_sources(recipe: Recipe, specs: Specs, *, complete: bool = True) -> list[Source]:
    """Open one or several data sets for the tasks of a recipe.

    Args:
        specs: names, paths, ids, configurations or objects; each may end in ``:SPLIT``.
        complete: whether every task must be served.

    Raises:
        UnknownName: there is no such data set or task. BadRecipe: an option is wrong. DataError: none is given, a path does not
        exist, or a task is served by none.
    """
    pairs = _pairs(specs)
    if not pairs:
        raise DataError("no data set is given; name one with --dataset (dataset=...)")
    if unknown := [task for task, _ in pairs if task is not None and task not in recipe.tasks]:
        raise UnknownName(f"datasets: there is no task '{unknown[0]}'; the tasks are {', '.join(recipe.tasks)}")
    if complete and all(task is not None for task, _ in pairs) and (without := [t for t in recipe.tasks if t not in dict(pairs)]):
        raise no_source(without[0])
    sources: list[Source] = []
    for task, given in pairs:
        spec, split = split_of(given)
        if len(pairs) == 1 and task is None and (complete or len(recipe.tasks) == 1):
            dataset = open_for(recipe, spec)
        else:
            wanted = [target_of(recipe, name) for name in recipe.tasks if task in (None, name)]
            own = copy(spec) if isinstance(spec, Dataset) else spec  # which may be given for several tasks
            dataset = open_dataset(own, () if takes_default(recipe, next(iter(recipe.tasks))) else tuple(wanted))
            dataset.partial = task is None and len(recipe.tasks) > 1
        source = Source("", spec, dataset, split, task, len(pairs) > 1)
        name = source.title if task is None else task
        count = sum(other.name.partition("#")[0] == name for other in sources)
        sources.append(replace(source, name=f"{name}#{count + 1}" if count else name))
    return sources


def split_of(spec: str | PartConfig | Dataset) -> tuple[str | PartConfig | Dataset, str | None]:
    """Return a data set and the split that its name ends with, such as ``easy-vqa:test``; None if it names none."""
    if isinstance(spec, Dataset):
        return spec, None
    head, colon, tail = (spec if isinstance(spec, str) else spec.use).rpartition(":")
    if colon and head and _SPLIT.fullmatch(tail):
        try:
            named = head if isinstance(spec, str) else spec.with_options(use=head)
            if tail in open_dataset(named).splits():
                return named, tail
        except MmzooError:  # the tail is a variant, such as a path
            pass
    return spec, None


def _pairs(specs: Any) -> list[tuple[str | None, str | PartConfig | Dataset]]:
    """Return each data set with the task that it is for."""
    if isinstance(specs, Mapping):
        if "use" in specs:
            return [(None, PartConfig.of(specs, "dataset"))]
        return [(task, spec) for task, given in specs.items() for _, spec in _pairs(given)]
    if isinstance(specs, Sequence) and not isinstance(specs, str | Dataset):
        return [pair for spec in specs for pair in _pairs(spec)]
    if not isinstance(specs, str | PathLike | PartConfig | Dataset):
        raise BadRecipe(f"a data set is a name, a path, an id, a mapping with options, or a Dataset (got {specs!r})")
    return [(None, str(specs) if isinstance(specs, PathLike) else specs)]


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

    def __getattr__(self, name: str) -> Any:
        """Return the methods of the stream's state, if it has them."""
        if name not in ("state_dict", "load_state_dict"):
            raise AttributeError(name)
        return getattr(self.examples, name)


def _under(target: str, example: Example) -> Example:
    targets: Any = example.for_task(target).targets
    return replace(example, targets={target: targets})


class Mixture(Sequence[Example]):
    """Read several sequences of examples, one after the other.

    Attributes:
        names: of the sources, in their order.
    """

    def __init__(self, names: Sequence[str], parts: Sequence[Sequence[Example]]) -> None:
        self.names, self.parts = list(names), list(parts)
        self.ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: Any) -> Any:
        number = range(len(self))[index]
        part = bisect_right(self.ends, number)
        return self.parts[part][number - self.ends[part]]


class StreamMixture(Iterable[Example]):
    """Hold several streams, with tables among them. Iterate over them in turn, until each has ended."""

    def __init__(self, names: Sequence[str], parts: Sequence[Sequence[Example] | Iterable[Example]]) -> None:
        self.names, self.parts = list(names), list(parts)

    def __iter__(self) -> Iterator[Example]:
        return _InTurn(map(iter, self.parts))


class _InTurn(Iterator[Example]):
    """Iterate over several iterators in turn. It goes on after an example that cannot be read, which a generator could not."""

    def __init__(self, iterators: Iterable[Iterator[Example]]) -> None:
        self.iterators = deque(iterators)

    def __next__(self) -> Example:
        while self.iterators:
            self.iterators.rotate(-1)
            try:
                return next(self.iterators[-1])
            except StopIteration:
                self.iterators.pop()
        raise StopIteration


def source_numbers(examples: Sequence[Example]) -> tuple[list[str], np.ndarray]:
    """Return the names of the sources of a table, and the number of the source of each example; one name if it is no mixture."""
    if isinstance(examples, Chosen):
        names, numbers = source_numbers(examples.examples)
        return names, numbers[np.asarray(examples.numbers)]
    if isinstance(examples, Mixture):
        return examples.names, np.repeat(np.arange(len(examples.parts)), [len(part) for part in examples.parts])
    return [""], np.zeros(len(examples), np.int64)
