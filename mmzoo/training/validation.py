"""Score a model on validation data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mmzoo.data.bad import Bad
from mmzoo.data.batching import batches
from mmzoo.data.collate import raise_bad, tensors
from mmzoo.data.fingerprint import fingerprint
from mmzoo.data.open import for_task
from mmzoo.errors import BadRecipe, DataError
from mmzoo.evaluation.controls import AS_IS, Condition
from mmzoo.evaluation.metric import Metric
from mmzoo.evaluation.scoring import (
    describe_outside_labels,
    metrics_of,
    outside_labels,
    references_of,
    score_examples,
    usable_examples,
)
from mmzoo.interfaces import Example
from mmzoo.models.model import MultimodalModel

LOSS = "loss"  # the name of the validation loss among the scores
BATCH_SIZE = 128  # of an evaluation, so that `mmzoo evaluate` computes the same


@dataclass
class Validation:
    """Hold the validation data of a run.

    Attributes:
        parts: tasks, and the examples that they are measured on: one part for all tasks of the same data sets.
        record: names the data, for run.json.
        metrics: of the tasks that have targets in the data, by name as scores have them, once `choose_metric` was called.
        metric: the score that chooses the best checkpoint.
    """

    parts: list[tuple[list[str], Sequence[Example]]]
    record: dict[str, Any]
    metrics: dict[str, Metric] = field(default_factory=dict)
    metric: str = ""

    def choose_metric(self, model: MultimodalModel) -> None:
        """Choose the metric. The model needs no weights, but what its tasks have learned from the data, as their metrics may be.

        Raises:
            BadRecipe: no measured task has ``training.metric``.
        """
        several = len(model.tasks) > 1
        measured = [task for tasks, _ in self.parts for task in tasks]
        names = [f"{task}/{name}" if several else name for task in measured for name in model.tasks[task].metrics]
        self.metrics = metrics_of(model, names)
        self.metric = _find_metric(model, self.metrics)

    def prepare(self, model: MultimodalModel, bad: Bad | None) -> None:
        """Check, before the first step, that each example has references that its tasks can predict, and choose the metric.

        With ``bad`` examples that cannot be used are left out, which opens every input.

        Raises:
            DataError: an example cannot be used, or none has a target in the label set of a task.
            BadRecipe: no measured task has ``training.metric``.
        """
        self.choose_metric(model)
        skipped: Bad = []
        outside: dict[str, int] = {}
        for number, (tasks, examples) in enumerate(self.parts):
            if bad is not None:
                self.parts[number] = tasks, usable_examples(model, examples, skipped, BATCH_SIZE)
            else:
                for example in examples:
                    for task in tasks:
                        references_of(model, task, example)
            outside |= _outside_labels(model, self.parts[number][1])
        everything = [example for _, examples in self.parts for example in examples]
        self.record |= {"examples": len(everything), "skipped": len(skipped), "fingerprint": fingerprint(everything)}
        self.record["outside_labels"] = outside

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


def _outside_labels(model: MultimodalModel, examples: Sequence[Example]) -> dict[str, int]:
    """Return by task how many examples have a target outside its label set, which cannot be predicted; only tasks with any.

    Raises:
        DataError: no target is in the label set.
    """
    found = outside_labels(model, examples)
    for task, targets in found.items():
        own = (for_task(model.recipe, task, example) for example in examples)
        if all(len(model.tasks[task].outside_labels(each)) == len(each.targets) for each in own):
            problem = describe_outside_labels(task, targets)
            raise DataError(f"validation: {problem}, and none is among them; is it the right column (target_column)?")
    return {task: len(targets) for task, targets in found.items()}


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
    raise no_metric(chosen, metrics)


def no_metric(chosen: str, names: Iterable[str]) -> BadRecipe:
    return BadRecipe(f"training.metric: no task that is validated has '{chosen}'; choose one of {', '.join([*names, LOSS])}")
