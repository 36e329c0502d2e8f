"""Open the validation data of a run, keep them apart from its training data, and score a model on them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Any

import torch

from mmzoo.data import provenance
from mmzoo.data.bad import Bad, Chosen
from mmzoo.data.batching import batches
from mmzoo.data.collate import raise_bad, tensors
from mmzoo.data.fingerprint import fingerprint
from mmzoo.data.mixture import VALIDATION_SPLITS, Mixture, Source, Spec, Specs, open_sources, split_of
from mmzoo.data.open import for_task, open_dataset, takes_default, target_of
from mmzoo.data.overlap import find_overlap, linked_by_inputs
from mmzoo.errors import BadRecipe, DataError, TrainingError, UnknownName
from mmzoo.evaluation.controls import AS_IS, Condition
from mmzoo.evaluation.metric import Metric
from mmzoo.evaluation.scoring import metrics_of, references_of, score_examples, usable_examples
from mmzoo.interfaces import Example
from mmzoo.models.compatibility import check_data
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig, Recipe
from mmzoo.registry.manager import plugin_manager
from mmzoo.training.data import describe_sources

LOSS = "loss"  # the name of the validation loss among the scores
BATCH_SIZE = 128  # of an evaluation, so that `mmzoo evaluate` computes the same
NEEDS_DATA = ("evaluate_every", "evaluate_limit", "metric", "patience")  # options that do nothing without validation data

Validated = float | Specs  # what `mmzoo.train` takes as ``validation``


@dataclass
class Validation:
    """Hold the validation data of a run.

    Attributes:
        parts: tasks, and the examples that they are measured on: one part for all tasks of the same data sets.
        record: names the data, for run.json.
        metrics: of the tasks that have targets in the data, by name as scores have them, once `prepare` was called.
        metric: the score that chooses the best checkpoint.
    """

    parts: list[tuple[list[str], Sequence[Example]]]
    record: dict[str, Any]
    metrics: dict[str, Metric] = field(default_factory=dict)
    metric: str = ""

    def prepare(self, model: MultimodalModel, bad: Bad | None) -> None:
        """Check, before the first step, that each example has references that its tasks can predict; choose the metric.

        With ``bad`` examples that cannot be used are left out, which opens every input.

        Raises:
            DataError: an example cannot be used. BadRecipe: no measured task has ``training.metric``.
        """
        skipped: Bad = []
        for number, (tasks, examples) in enumerate(self.parts):
            if bad is not None:
                self.parts[number] = tasks, usable_examples(model, examples, skipped, BATCH_SIZE)
            else:
                for example in examples:
                    for task in tasks:
                        references_of(model, task, example)
            names = [f"{task}/{name}" if len(model.tasks) > 1 else name for task in tasks for name in model.tasks[task].metrics]
            self.metrics |= metrics_of(model, names)
        everything = [example for _, examples in self.parts for example in examples]
        self.record |= {"examples": len(everything), "skipped": len(skipped), "fingerprint": fingerprint(everything)}
        self.metric = _find_metric(model, self.metrics)

    @property
    def smaller_is_better(self) -> bool:
        """Return whether the score that chooses the best checkpoint is an error."""
        return self.metric == LOSS or self.metrics[self.metric].smaller_is_better

    def score(
        self, model: MultimodalModel, advance: Callable[[int], None] = lambda count: None
    ) -> tuple[dict[str, float], list[list[Any]]]:
        """Return the score by each metric, and the predictions of each part; the validation loss only where it is the metric."""
        scores: dict[str, float] = {}
        predictions = []
        for tasks, examples in self.parts:
            own = {name: self.metrics[name] for name in self.metrics if len(model.tasks) == 1 or name.partition("/")[0] in tasks}
            result = score_examples(
                model, examples, own, {AS_IS: Condition(examples, _blank(model))}, batch_size=BATCH_SIZE, resamples=0,
                advance=lambda count, _: advance(count),
            )[AS_IS]  # fmt: skip
            scores |= {name: score.value for name, score in result.scores.items()}
            predictions.append(result.predictions)
        if self.metric == LOSS:
            scores[LOSS] = self._loss(model)
        return scores, predictions

    @torch.no_grad()
    def _loss(self, model: MultimodalModel) -> float:
        """Return the loss of training over all examples: the weighted sum of the terms, each a mean over all its labels.

        Each process computes all of it, since a task may exchange tensors between processes.
        """
        sums: dict[tuple[str, str], list[float]] = {}
        collate = model.collator(training=True, blank=_blank(model))
        with model.evaluating():
            for _, examples in self.parts:
                for group in batches(examples, BATCH_SIZE):
                    collated = collate(group)
                    raise_bad(collated)
                    batch = tensors(collated, model.device)
                    for task, term, total, count in model.loss_terms(batch):
                        own = sums.setdefault((task, term), [0.0, 0.0])
                        own[0], own[1] = own[0] + float(total), own[1] + float(count)
        weights = {task: config.weight for task, config in model.recipe.tasks.items()}
        return sum(weights[task] * total / max(count, 1.0) for (task, _), (total, count) in sums.items())


def _blank(model: MultimodalModel) -> tuple[str, ...]:
    """Return the modalities that are blanked: all for a blind control, which is validated as it is trained."""
    return tuple(model.modalities) if model.recipe.training.blank_images else ()


def _find_metric(model: MultimodalModel, metrics: Mapping[str, Metric]) -> str:
    """Return the name of the score that chooses the best checkpoint."""
    chosen = model.recipe.training.metric
    if chosen is None:
        return next(iter(metrics))
    if len(model.tasks) == 1:
        chosen = chosen.removeprefix(f"{next(iter(model.tasks))}/")
    if found := [name for name in (*metrics, LOSS) if chosen in (name, name.partition("/")[2])]:
        return found[0]
    raise _no_metric(chosen, metrics)


def _no_metric(chosen: str, names: Iterable[str]) -> BadRecipe:
    return BadRecipe(f"training.metric: no task that is validated has '{chosen}'; choose one of {', '.join([*names, LOSS])}")


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
            raise _no_metric(chosen, [f"{name}/{each}" if several else each for name, names in own.items() for each in names])


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
    if not recipe.data.deduplicate:
        raise DataError(
            f"{both} of {sum(map(len, loaded))} validation examples are among the training examples, so that their scores would "
            "say little; choose another split, or leave them out of the training: --set data.deduplicate=true"
        )
    if len(twice) == len(examples):
        raise DataError("every training example is among the validation examples; choose another split")
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
    if not isinstance(given, Mapping) or "use" in given:
        return _open_for_task(recipe, sources, None, given)
    if unknown := [task for task in given if task not in recipe.tasks]:
        raise UnknownName(f"validation: there is no task '{unknown[0]}'; the tasks are {', '.join(recipe.tasks)}")
    return [source for task, own in given.items() for source in _open_for_task(recipe, sources, task, own)]


def _open_for_task(recipe: Recipe, sources: Sequence[Source], task: str | None, given: Any) -> list[Source]:
    if isinstance(given, Mapping):
        given = PartConfig.of(given, "validation")
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [source for each in given for source in _open_for_task(recipe, sources, task, each)]
    if task is not None and _as_share(given) is not None:
        raise BadRecipe(f"validation: {task}={given}: a share is of all training examples; write {given} alone")
    trained = [source for source in sources if task in (None, source.task) or source.task is None]
    if isinstance(given, str) and (own := [source for source in trained if given in source.dataset.splits()]):
        return [replace(source, split=given, task=task or source.task) for source in own]
    spec = _with_options(given, trained)
    opened = open_sources(recipe, spec if task is None else {task: spec}, complete=False)
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
        raise DataError(
            f"validation: all {len(examples)} training examples share an input, so none can be held out; name a split"
        )
    chosen = set(held)
    return sorted(held), [number for number in range(len(examples)) if number not in chosen]


def best_of(history: Sequence[Mapping[str, Any]], metric: str, *, smaller: bool) -> dict[str, Any] | None:
    """Return ``step`` and ``score`` of the best entry, the first of equals; None if no score is a number."""
    best: dict[str, Any] | None = None
    for entry in history:
        score = entry["scores"][metric]
        if not math.isfinite(score):
            continue
        if best is None or (score < best["score"] if smaller else score > best["score"]):
            best = {"step": entry["step"], "score": score}
    return best


def describe(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a history for run.json, which has no NaN."""
    return [
        {"step": entry["step"], "scores": {name: s if math.isfinite(s) else None for name, s in entry["scores"].items()}}
        for entry in history
    ]


def check_resumed(state: Mapping[str, Any] | None, validation: Validation | None) -> None:
    """Check that a run is resumed with the validation data that it was started with; ``state`` is that of its checkpoint.

    Raises:
        TrainingError: the data differ.
    """
    before, now = (state or {}).get("fingerprint"), validation.record["fingerprint"] if validation else None
    if before != now:
        had = "without validation data" if before is None else "with other validation data"
        raise TrainingError(f"the run was started {had}; resume with the same --validation, or start a new run with --overwrite")
