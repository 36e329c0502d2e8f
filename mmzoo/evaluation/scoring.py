"""Score a model on examples under each condition. No files are read or written, and nothing is recorded.

Several processes share the batches: every process gets all predictions and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mmzoo.common import processes
from mmzoo.data.bad import Bad, Chosen, none_usable, without_bad
from mmzoo.data.batching import spans
from mmzoo.data.collate import raise_bad
from mmzoo.data.open import for_task, no_target, takes_default
from mmzoo.errors import DataError, UnknownName
from mmzoo.evaluation.controls import Condition
from mmzoo.evaluation.metric import Metric
from mmzoo.evaluation.statistics import RESAMPLES, Score, measure
from mmzoo.interfaces import Example
from mmzoo.modalities.identity import input_key
from mmzoo.models.model import MultimodalModel
from mmzoo.models.prediction import input_error
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig
from mmzoo.registry.isolation import attribute_errors_to


@dataclass(frozen=True)
class ConditionResult:
    """Hold the predictions under one condition, in order (by task for a model of several), and their score by each metric, with
    the note of each metric that has one."""

    scores: dict[str, Score]
    predictions: list[Any]
    notes: dict[str, str]


def metrics_of(
    model: MultimodalModel, names: Sequence[str] | None = None, tasks: Sequence[str] | None = None
) -> dict[str, Metric]:
    """Return metrics by name; those of every task, or of each of ``tasks``, if ``names`` is None.

    For a model of several tasks the names are ``task/metric``; a name without a task is measured for every one of ``tasks``.

    Raises:
        UnknownName: there is no such metric or task. BadRecipe: a wrong option.
    """
    if len(model.tasks) == 1:
        return make_metrics(names or model.task.metrics)
    pairs, tasks = [], tasks or list(model.tasks)
    for name in names or [f"{task}/{metric}" for task in tasks for metric in model.tasks[task].metrics]:
        task, slash, metric = name.partition("/")
        if slash and task not in model.tasks:
            raise UnknownName(f"metric '{name}': this model has no task '{task}'; its tasks are {', '.join(model.tasks)}")
        pairs += [(task, metric)] if slash else [(every, name) for every in tasks]
    metrics = make_metrics(dict.fromkeys(metric for _, metric in pairs))
    return {f"{task}/{metric}": metrics[metric] for task, metric in pairs}


def make_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """Return metrics by name.

    Raises:
        UnknownName: there is no such metric. BadRecipe: a wrong option.
    """
    resolved = {name: resolve("metric", PartConfig.of(name, "metric"), key="metric") for name in names}
    return {name: metric.cls(metric.options) for name, metric in resolved.items()}


@processes.together()
def score_examples(
    model: MultimodalModel,
    examples: Sequence[Example],
    metrics: Mapping[str, Metric],
    conditions: Mapping[str, Condition],
    *,
    seed: int = 0,
    batch_size: int = 128,
    resamples: int = RESAMPLES,
    options: Mapping[str, Any] | None = None,
    advance: Callable[[int, str], None] = lambda count, condition: None,
) -> dict[str, ConditionResult]:
    """Predict the examples under each condition and compare the predictions with the references of ``examples``.

    A task of several is measured on the examples that have a target of it; one without a metric here is left out.

    Args:
        examples: the original examples, which have the references. Those that share an input are resampled together.
        metrics: as `metrics_of` names them.
        seed: the seed of the bootstrap.
        resamples: of the bootstrap; with 0 the interval of a score is the score itself.
        options: passed to the tasks' prediction.
        advance: called after each batch with the number of examples that are done, in all processes, and the condition, to show
            progress.

    Raises:
        DataError: there are no examples, one has no reference that its task can predict, or processes read different examples.
        BadInput: an input cannot be read. PluginBroken: a metric fails.
    """
    if not examples:
        raise DataError("there are no examples to measure")
    first, several = next(iter(model.tasks)), len(model.tasks) > 1
    tasks = list(dict.fromkeys(name.partition("/")[0] if several else first for name in metrics))
    references = {task: _references(model, task, examples) for task in tasks}
    if not processes.agree(references):
        raise DataError("the processes read different examples; give each machine the same copy of the data set")
    groups = cache(lambda task: _groups(examples, model.tasks[task].modality or model.modality))  # hashes inputs in memory
    alone = tasks[0] if several and len(tasks) == 1 else None
    predictions = _predict(model, conditions, batch_size, {**(options or {}), **({"task": alone} if alone else {})}, advance)
    if alone:
        predictions = {name: [{alone: each} for each in own] for name, own in predictions.items()}

    def score(condition: str, name: str) -> tuple[Score, str]:
        task, metric = name.partition("/")[0] if several else first, metrics[name]
        rows, own = list(references[task]), predictions[condition]
        own = [own[i][task] if several else own[i] for i in rows]
        with attribute_errors_to(f"metric '{name}' failed on the predictions"):
            own_groups = [groups(task)[i] for i in rows] if resamples or metric.compares_all else []
            measured = measure(metric, own, list(references[task].values()), own_groups, seed=seed, resamples=resamples)
            return measured, metric.note

    pairs = [(condition, name) for condition in conditions for name in metrics]
    scores = dict(zip(pairs, processes.share(pairs, lambda pair: score(*pair)), strict=True))
    return {
        condition: ConditionResult(
            {name: scores[condition, name][0] for name in metrics},
            predictions[condition],
            {name: note for name in metrics if (note := scores[condition, name][1])},
        )
        for condition in conditions
    }


def _predict(
    model: MultimodalModel,
    conditions: Mapping[str, Condition],
    batch_size: int,
    options: Mapping[str, Any],
    advance: Callable[[int, str], None],
) -> dict[str, list[Any]]:
    """Return the predictions under each condition. The batches of all conditions are shared among the processes.

    A model whose weights are sharded runs in all processes at once, so that each predicts every batch.
    """
    pieces = [(name, span) for name, condition in conditions.items() for span in spans(len(condition.examples), batch_size)]
    sharded = any(hasattr(parameter, "placements") for parameter in model.parameters())  # a DTensor
    count = 1 if sharded else processes.count()

    def predict(number: int) -> list[Any]:
        name, span = pieces[number]
        condition = conditions[name]
        group = [condition.examples[i] for i in span]
        own = model.predict_examples(group, batch_size=batch_size, blank=condition.blank, **options)
        advance(sum(len(other) for _, other in pieces[number : number + count]), name)  # the others' too, which take as long
        return own

    numbers = range(len(pieces))
    results = [predict(number) for number in numbers] if sharded else processes.share(numbers, predict)
    predictions: dict[str, list[Any]] = {name: [] for name in conditions}
    for (name, _), own in zip(pieces, results, strict=True):
        predictions[name] += own
    return predictions


def usable_examples(model: MultimodalModel, examples: Sequence[Example], bad: Bad, batch_size: int = 128) -> Sequence[Example]:
    """Return the examples that can be read, have references and can be predicted, and note the others. It opens every input.

    They are found before anything is measured, because a control gives the input of an example to others. Several processes share
    the batches.

    Raises:
        DataError: there are none.
    """

    def check(example: Example) -> None:
        for task in model.tasks:
            references_of(model, task, example)

    collate = model.collator(training=False, skip_bad=True)
    checked = without_bad(examples, check, bad)

    def open_batch(span: range) -> tuple[Bad, list[int]]:
        batch = collate([checked[i] for i in span])
        return raise_bad(batch), [span[i] for i in batch["kept"]]

    opened = processes.share(spans(len(checked), batch_size), open_batch)
    bad += [pair for own, _ in opened for pair in own]
    numbers = [number for _, own in opened for number in own]
    if not numbers:
        raise input_error(model)(none_usable(bad))
    return Chosen(checked, numbers)


def _groups(examples: Sequence[Example], modality: str) -> list[Hashable]:
    """Return the identity of each example's input; its id if it has none."""
    return [input_key(example.of(modality)) or example.id for example in examples]


def _references(model: MultimodalModel, task: str, examples: Sequence[Example]) -> dict[int, list[str]]:
    """Return the references of a task by the number of the example, where it has any."""
    every = {i: references_of(model, task, example) for i, example in enumerate(examples)}
    found = {i: references for i, references in every.items() if references is not None}
    if not found:
        raise no_target(model.recipe, task, examples)
    return found


def outside_labels(model: MultimodalModel, examples: Iterable[Example]) -> dict[str, list[str]]:
    """Return by task a target that it cannot predict (`Task.outside_labels`) of each example with one; only tasks with any."""
    found: dict[str, list[str]] = {task: [] for task in model.tasks}
    for example in examples:
        for name, task in model.tasks.items():
            found[name] += task.outside_labels(for_task(model.recipe, name, example))[:1]
    return {task: targets for task, targets in found.items() if targets}


def describe_outside_labels(task: str, targets: Sequence[str]) -> str:
    """Return the beginning of a sentence about the examples with these `outside_labels` of a task."""
    shown = ", ".join(map(repr, list(dict.fromkeys(targets))[:3]))
    have = "1 example has" if len(targets) == 1 else f"{len(targets)} examples have"
    return f"{have} a target outside the labels of '{task}', such as {shown}"


def references_of(model: MultimodalModel, task: str, example: Example) -> list[str] | None:
    """Return the references of an example for a task; None if it has no target of it, or lacks the input that it compares.

    Raises:
        DataError: it has none, or one that the task cannot predict.
    """
    module, own = model.tasks[task], for_task(model.recipe, task, example)
    if module.needs_input and model.has_inputs and not example.of(module.modality or model.modality):
        return None  # there is nothing to compare
    return module.references(own) if own.targets or takes_default(model.recipe, task) else None
