"""Decide how often each data set, and each class, is drawn from, as `DataOptions.weights` and `DataOptions.balance` say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmzoo.data.mixture import Source, StreamMixture, source_numbers
from mmzoo.data.open import for_task
from mmzoo.errors import BadRecipe, DataError
from mmzoo.interfaces import Example
from mmzoo.recipes.data_options import PROPORTIONAL, ROUND_ROBIN, DataOptions
from mmzoo.recipes.schema import Recipe


@dataclass(frozen=True)
class Groups:
    """Hold the groups of examples that a run draws from.

    Attributes:
        numbers: of the examples in each group.
        shares: of the draws from each group; any sum.
        sources: the number of the data set of each group.
        turns: whether the data sets take turns.
    """

    numbers: Sequence[np.ndarray]
    shares: Sequence[float]
    sources: Sequence[int]
    turns: bool = False


def used_sources(options: DataOptions, sources: Sequence[Source]) -> list[Source]:
    """Return the data sets without those whose weight is 0.

    Raises:
        BadRecipe: a weight is for no data set, or a data set has none.
    """
    weights = options.weights
    if isinstance(weights, str):
        return list(sources)
    names = [source.name for source in sources]
    if unknown := [name for name in weights if name not in names]:
        raise BadRecipe(f"data.weights: there is no data set '{unknown[0]}'; they are called {', '.join(names)}")
    if without := [name for name in names if name not in weights]:
        raise BadRecipe(f"data.weights: '{without[0]}' has no weight; give it one, or 0 to leave it out")
    return [source for source in sources if weights[source.name]]


def shares_of(options: DataOptions, names: Sequence[str], counts: Sequence[int]) -> list[float]:
    """Return the share of the draws of each data set, which has so many examples; they sum to 1."""
    weights = options.weights
    if isinstance(weights, Mapping):
        parts = [float(weights[name]) for name in names]
    elif weights == ROUND_ROBIN:
        parts = [1.0] * len(names)
    else:
        temperature = 1.0 if weights == PROPORTIONAL else float(weights.partition(":")[2])
        largest = max(counts)
        parts = [(count / largest) ** (1 / temperature) for count in counts]
    return [part / sum(parts) for part in parts]


def stream_shares(options: DataOptions, names: Sequence[str]) -> list[float]:
    """Return the share of each of several streams.

    Raises:
        BadRecipe: the shares depend on their lengths, which are not known.
    """
    if isinstance(options.weights, str) and options.weights != ROUND_ROBIN:
        raise BadRecipe(
            f"data.weights: {options.weights} needs the number of examples, which a stream does not say; set data.weights to "
            f"{ROUND_ROBIN}, or to numbers: " + " ".join(f"--set data.weights.{name}=1" for name in names)
        )
    return shares_of(options, names, [0] * len(names))


def group(recipe: Recipe, examples: Sequence[Example]) -> Groups | None:
    """Return the groups of examples; None where all are one, each drawn once an epoch.

    Raises:
        BadRecipe, DataError: the options do not fit the data; see `classes_of`.
    """
    options, (names, of) = recipe.data, source_numbers(examples)
    mixed = len(names) > 1 and options.weights != PROPORTIONAL
    if not mixed and options.balance is None:
        return None
    if mixed and options.weights == ROUND_ROBIN and recipe.training.keep_images_together:
        raise BadRecipe(
            "data.weights: round-robin takes turns by example; set training.keep_images_together to false, or weights"
        )
    counts = np.bincount(of, minlength=len(names)).tolist()
    shares = shares_of(options, names, counts) if mixed else [1.0]
    kinds = np.full(len(of), -1) if options.balance is None else classes_of(recipe, options.balance, examples)
    numbers: list[np.ndarray] = []
    parts: list[float] = []
    sources: list[int] = []
    for source, share in enumerate(shares):
        own = np.flatnonzero(of == source) if mixed else np.arange(len(of))
        present = np.unique(kinds[own])
        labelled = float((kinds[own] >= 0).mean())
        for kind in present.tolist():
            numbers.append(own[kinds[own] == kind])
            parts.append(share * (1 - labelled if kind < 0 else labelled / np.count_nonzero(present >= 0)))
            sources.append(source)
    return Groups(numbers, parts, sources, turns=mixed and options.weights == ROUND_ROBIN)


def classes_of(recipe: Recipe, task: str, examples: Sequence[Example]) -> np.ndarray:
    """Return the number of each example's class, the text of its only target of a task; -1 where it has none.

    Raises:
        BadRecipe: there is no such task.
        DataError: it has no classes: an example has several targets, or hardly two have the same.
    """
    if task not in recipe.tasks:
        raise BadRecipe(f"data.balance: there is no task '{task}'; the tasks are {', '.join(recipe.tasks)}")
    known: dict[str, int] = {}
    classes = []
    for example in examples:
        targets = for_task(recipe, task, example).targets
        if len(targets) > 1:
            raise DataError(
                f"data.balance: task '{task}' has no classes: example {example.id} has {len(targets)} targets; leave it out"
            )
        classes.append(known.setdefault(next(iter(targets)), len(known)) if targets else -1)
    count = sum(kind >= 0 for kind in classes)
    if 2 * len(known) > count:
        raise DataError(
            f"data.balance: task '{task}' has no classes: its {count} targets are {len(known)} different ones; leave it out"
        )
    return np.array(classes)


def check_streams(options: DataOptions, examples: Iterable[Example]) -> None:
    """Check that the options of a mixture fit streams.

    Raises:
        BadRecipe: they need the number of examples, or their classes.
    """
    if options.balance is not None:
        raise BadRecipe("data.balance: the classes of a stream are not known beforehand; remove it, or do not stream the data")
    if isinstance(examples, StreamMixture):
        stream_shares(options, examples.names)


def announce(record: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a line about a mixture of which a run will draw as many examples as ``record`` says."""
    return "mixing " + ", ".join(
        f"{name}: {own['share']:.1%} of the draws"
        + (f" ({own['drawn'] / own['examples']:.2g} passes over {own['examples']:,} examples)" if own["examples"] else "")
        for name, own in record.items()
    )
