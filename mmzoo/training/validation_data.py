"""Open the validation data of a run, and keep them apart from its training data."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from os import PathLike
from typing import Any

from mmzoo.common.suggestions import did_you_mean
from mmzoo.data import provenance
from mmzoo.data.bad import Chosen
from mmzoo.data.mixture import VALIDATION_SPLITS, Mixture, Source, Spec, Specs, open_sources, split_of
from mmzoo.data.open import for_task, open_dataset, takes_default, target_of
from mmzoo.data.overlap import find_overlap, linked_by_inputs
from mmzoo.errors import BadRecipe, DataError, UnknownName
from mmzoo.interfaces import Example
from mmzoo.models.compatibility import check_data
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig, Recipe
from mmzoo.registry.manager import plugin_manager
from mmzoo.training.data import describe_sources
from mmzoo.training.validation import LOSS, Validation, no_metric

NEEDS_DATA = ("evaluate_every", "evaluate_limit", "metric", "patience")  # options that do nothing without validation data

Validated = float | Specs  # what `mmzoo.train` takes as ``validation``


def check_options(recipe: Recipe, given: Any) -> None:
    """Check the options of the validation, before anything is opened.

    Raises:
        BadRecipe: an option needs validation data, and there are none, or there is no such metric.
    """
    options, chosen = recipe.training, recipe.training.metric
    if given is None:
        names = [f"training.{name}" for name in NEEDS_DATA if getattr(options, name) not in (None, 0)]
        if names := names + ["data.deduplicate"] * recipe.data.deduplicate:
            raise BadRecipe(f"{names[0]}: there are no validation data; add --validation SPLIT, NAME or 0.1 (validation=...)")
    elif chosen is not None:  # what is left open here is checked once the tasks have learned from the data
        own = {name: resolve("task", config).cls.metrics for name, config in recipe.tasks.items()}
        known = {entry.name for entry in plugin_manager().registry.entries("metric")}
        task, slash, metric = chosen.rpartition("/")
        if (slash and task not in own) or (metric not in known and chosen != LOSS):
            several = len(own) > 1
            raise no_metric(chosen, [f"{name}/{each}" if several else each for name, names in own.items() for each in names])


def open_validation(
    recipe: Recipe, sources: Sequence[Source], split: str, examples: Sequence[Example] | Iterable[Example], given: Validated
) -> tuple[Validation, Sequence[Example] | Iterable[Example]]:
    """Open the validation data of a run.

    Args:
        sources, split, examples: the training data.
        given: a share of the training examples; a split of the training data; a data set, or several; or these by task.

    Returns:
        The validation data, and the training examples that are left.

    Raises:
        DataError: there is no example, or none has a target of a task; or some are among the training examples.
        Others as `open_sources`.
    """
    if (share := _as_share(given)) is not None:
        held, left = _hold_out(recipe, examples, share)
        ends = [0, *getattr(examples, "ends", [len(held) + len(left)])]
        opened = [[number for number in held if a <= number < b] for a, b in pairwise(ends)]
        record = {**describe_sources(sources, split), "share": share}
        parts = [Chosen(examples, numbers) for numbers in opened if numbers]  # type: ignore[arg-type]
        limited = [Chosen(part, range(len(part))[: recipe.training.evaluate_limit]) for part in parts]
        return Validation(_by_tasks(recipe, limited), record), Chosen(examples, left)  # type: ignore[arg-type]
    chosen = _open_given(recipe, sources, given)
    loaded = [_load(recipe, source) for source in chosen]
    validation = Validation(_by_tasks(recipe, loaded), describe_sources(chosen, ""))
    if not isinstance(examples, Sequence):
        return validation, examples  # a stream cannot be compared without reading all of it
    both, twice = find_overlap(recipe, (example for part in loaded for example in part), examples)
    if not both:
        return validation, examples
    fault = f"{both} of {sum(map(len, loaded))} validation examples are among the training examples"
    if len(twice) == len(examples):
        raise DataError(f"{fault}, and these are all of those; choose another split, or hold out a share: --validation 0.1")
    if not recipe.data.deduplicate:
        raise DataError(
            f"{fault}, so that their scores would say little; choose another split, or leave them out of the training: "
            "--set data.deduplicate=true"
        )
    validation.record["deduplicated"] = len(twice)
    return validation, Chosen(examples, [number for number in range(len(examples)) if number not in twice])


def _as_share(given: Validated) -> float | None:
    """Return the share of the training examples that is held out; None if other data are named."""
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        return None
    try:
        share = float(given)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise BadRecipe(f"validation: a share of the training examples must be above 0 and below 1 (got {given})")
    return share


# Naming validation data


def _open_given(recipe: Recipe, sources: Sequence[Source], given: Any) -> list[Source]:
    """Return the validation data sets, with their splits."""
    if not given and not isinstance(given, bool):
        raise DataError("validation: no data are named; name a split, a data set, or a share of the training examples (0.1)")
    if not isinstance(given, Mapping) or "use" in given:
        return _open_for_task(recipe, sources, None, given)
    if unknown := [task for task in given if task not in recipe.tasks]:
        raise UnknownName(f"validation: there is no task '{unknown[0]}'; the tasks are {', '.join(recipe.tasks)}")
    return [source for task, own in given.items() for source in _open_for_task(recipe, sources, task, own)]


def _open_for_task(recipe: Recipe, sources: Sequence[Source], task: str | None, given: Any) -> list[Source]:
    if isinstance(given, Mapping):
        given = PartConfig.of(given, "validation")
    if isinstance(given, PathLike):
        given = str(given)
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [source for each in given for source in _open_for_task(recipe, sources, task, each)]
    if _as_share(given) is not None:
        raise BadRecipe(f"validation: a share is of all training examples; write {given} alone, without a task or other data")
    trained = [source for source in sources if task in (None, source.task) or source.task is None]
    if isinstance(given, str) and (own := [source for source in trained if given in source.dataset.splits()]):
        return [replace(source, split=given, task=task or source.task) for source in own]
    spec = _with_options(given, trained)
    try:
        opened = open_sources(recipe, spec if task is None else {task: spec}, complete=False)
    except UnknownName as error:
        splits = list(dict.fromkeys(split for source in trained for split in source.dataset.splits()))
        if not isinstance(given, str):
            raise
        raise UnknownName(
            f"validation: '{given}' is neither a split of the training data ({', '.join(splits)}) nor a data set; "
            + (did_you_mean(given, splits) or f"a share to hold out is written 0.1\n{error}")
        ) from None
    return [source if source.split else replace(source, split=_default_split(source)) for source in opened]


def _with_options(given: Any, sources: Sequence[Source]) -> Spec:
    """Return a data set that is named without options with those of the training data, if these are the only ones of its kind."""
    named = [source.spec for source in sources if isinstance(source.spec, PartConfig) and source.spec.options]
    if not isinstance(given, str) or len(named) != 1 or len(sources) != 1:
        return given
    spec, split = split_of(given)
    if split is not None or type(open_dataset(spec)) is not type(sources[0].dataset):
        return given
    return provenance.substitute(spec, {"dataset_options": named[0].options})


def _default_split(source: Source) -> str:
    splits = source.dataset.splits()
    if found := next((name for name in VALIDATION_SPLITS if name in splits), None) or (splits[0] if len(splits) == 1 else None):
        return found
    raise DataError(f"validation: data set '{source.title}' has the splits {', '.join(splits)}; write {source.title}:SPLIT")


def _load(recipe: Recipe, source: Source) -> Sequence[Example]:
    """Return the examples of a validation data set: the first ``training.evaluate_limit``, or all."""
    limit = recipe.training.evaluate_limit
    loaded = source.load(recipe, str(source.split))
    if isinstance(loaded, Sequence):
        examples = loaded if limit is None else Chosen(loaded, range(len(loaded))[:limit])
    elif limit is None:
        raise BadRecipe("training.evaluate_limit: the validation data are streamed and have no length; set how many to read")
    else:
        examples = list(islice(loaded, limit))
    if not len(examples):
        raise DataError(f"validation: split '{source.split}' of '{source.title}' is empty")
    check_data(recipe, examples[0], source.title)
    return examples


def _by_tasks(recipe: Recipe, loaded: Sequence[Sequence[Example]]) -> list[tuple[list[str], Sequence[Example]]]:
    """Return the tasks with the examples of the data sets that have targets of them; tasks of the same data sets are together."""
    numbers: dict[str, tuple[int, ...]] = {}
    for task in recipe.tasks:
        default = takes_default(recipe, task)
        numbers[task] = tuple(
            i for i, part in enumerate(loaded) if default or any(for_task(recipe, task, example).targets for example in part)
        )
    groups = {own: [task for task in recipe.tasks if numbers[task] == own] for own in numbers.values() if own}
    if not groups:
        wanted = ", ".join(target_of(recipe, task) for task in recipe.tasks)
        raise DataError(f"validation: no example has a target of a task; the tasks read {wanted}")
    parts = {own: [loaded[i] for i in own] for own in groups}
    return [(tasks, parts[own][0] if len(own) == 1 else Mixture([""] * len(own), parts[own])) for own, tasks in groups.items()]


# Keeping validation and training apart


def _hold_out(recipe: Recipe, examples: Any, share: float) -> tuple[list[int], list[int]]:
    """Return the numbers of the examples that are held out, and those of the others, as a function of the seed.

    Examples that share the content of an input are on one side; of those without inputs, the ones that share their text.
    """
    if not isinstance(examples, Sequence):
        raise BadRecipe(f"validation: a share ({share}) cannot be held out of a streamed data set; name a split or a data set")
    wanted = round(share * len(examples))
    if not wanted:
        raise DataError(f"validation: {share} of {len(examples)} training examples is less than one; name a larger share")
    groups = linked_by_inputs(examples)
    random.Random(f"{recipe.training.seed} validation").shuffle(groups)
    held: list[int] = []
    for group in groups:
        if len(held) + len(group) <= wanted:
            held += group
    held = held or min(groups, key=len)  # every group is larger than the share
    if len(held) == len(examples):
        why = "share an input" if len(groups) == 1 else f"would be held out for a share of {share}"
        raise DataError(f"validation: all {len(examples)} training examples {why}; name a smaller share, or a split")
    chosen = set(held)
    return sorted(held), [number for number in range(len(examples)) if number not in chosen]
