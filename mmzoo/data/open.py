"""Open a data set by name, path or id, and load one of its splits."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmzoo.data.dataset import Dataset
from mmzoo.errors import BadRecipe, DataError, UnknownName
from mmzoo.interfaces import Example
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig, Recipe
from mmzoo.recipes.shape import default_name
from mmzoo.registry.entries import split_use
from mmzoo.registry.isolation import attribute_errors_to
from mmzoo.registry.manager import plugin_manager


def open_for(recipe: Recipe, spec: str | PartConfig | Dataset) -> Dataset:
    """Open a data set for the tasks of a recipe; see `open_dataset`."""
    names = tuple(target_of(recipe, name) for name in recipe.tasks)
    dataset = open_dataset(spec, () if takes_default(recipe, next(iter(recipe.tasks))) else names)
    dataset.exact = len(names) > 1 or recipe.task.target is not None
    return dataset


def takes_default(recipe: Recipe, task: str) -> bool:
    """Return whether a task is the only one and names no targets, so that it takes those that a data set has."""
    config = recipe.tasks[task]
    return len(recipe.tasks) == 1 and config.target is None and task == default_name("task", config)


def target_of(recipe: Recipe, task: str) -> str:
    """Return the key of a task's targets in the data."""
    return recipe.tasks[task].target or task


def for_task(recipe: Recipe, task: str, example: Example) -> Example:
    """Return an example with the targets of a task."""
    if not isinstance(example.targets, Mapping):  # a tuple serves every task
        return example
    return example.for_task(target_of(recipe, task), default=takes_default(recipe, task))


def no_target(recipe: Recipe, task: str, examples: Iterable[Example]) -> DataError:
    """Return the error for data without a target of a task; it names the targets that there are."""
    named = {name for example in examples if isinstance(example.targets, Mapping) for name in example.targets}
    fix = (
        f"the data has {', '.join(sorted(named))}: rename the task, or set tasks.{task}.target" if named else "it has no targets"
    )
    return DataError(f"no example has a target '{target_of(recipe, task)}', which the task '{task}' needs; {fix}")


def open_dataset(spec: str | PartConfig | Dataset, wanted: tuple[str, ...] = ()) -> Dataset:
    """Open a data set by name (``easy-vqa``), by path (a folder, .jsonl, .csv or .parquet file), or by ``org/name`` id.

    ``wanted`` are the names of the targets that a model's tasks read; see `Dataset`.

    Raises:
        UnknownName: there is no such data set.
        BadRecipe: an option is wrong.
        DataError: the path does not exist.
    """
    if isinstance(spec, Dataset):
        spec.wanted = wanted
        return spec
    part = spec if isinstance(spec, PartConfig) else PartConfig.of(spec, "dataset")
    name, _, _ = split_use(part.use)
    known = {entry.name for entry in plugin_manager().registry.entries("dataset")}
    if name not in known:
        if os.path.exists(os.path.expanduser(part.use)) and "files" in known:
            part = part.with_options(use="files", variant=part.use)  # as an option, because a path may contain '@'
        elif part.use.startswith((".", "/", "~")) or Path(part.use).suffix in {".jsonl", ".json", ".csv", ".parquet"}:
            raise DataError(f"data set '{part.use}': there is no such file or folder")
        elif "/" in part.use and "datasets" in known:
            part = part.with_options(use=f"datasets:{part.use}")
    try:
        resolved = resolve("dataset", part)
    except UnknownName as error:
        raise UnknownName(f"{error}\nA data set is a registered name, a path, or an id such as 'org/name'.") from None
    dataset: Dataset = resolved.cls(resolved.options)
    dataset.wanted = wanted
    return dataset


def load_split(dataset: Dataset, split: str) -> Sequence[Example] | Iterable[Example]:
    """Return the examples of a split.

    Raises:
        DataError: there is no such split, or it is empty.
        PluginBroken: the data set's own code fails.
    """
    with attribute_errors_to(f"data set '{type(dataset).__name__}' cannot be loaded"):
        if split not in (splits := dataset.splits()):
            raise DataError(f"there is no split '{split}'; there are: {', '.join(splits) or 'none'}")
        examples = dataset.load(split)
        if isinstance(examples, Sequence) and not len(examples):
            raise DataError(f"split '{split}' is empty; training and evaluation need at least one example")
    return examples


def dataset_part(text: str | PartConfig | Dataset, sets: dict[str, Any]) -> str | PartConfig | Dataset:
    """Return a data set's configuration with options changed; raise `BadRecipe` for an object, which cannot be changed."""
    if not sets:
        return text
    if isinstance(text, Dataset):
        raise BadRecipe("options can be set for a data set that is named, not for an object")
    return PartConfig.of(text, "dataset").with_options(**sets)
