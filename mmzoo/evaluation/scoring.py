"""Score a model on examples under each condition. No files are read or written, and nothing is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmzoo.data.batching import batches
from mmzoo.errors import DataError
from mmzoo.evaluation.controls import Condition
from mmzoo.evaluation.metric import Metric
from mmzoo.evaluation.statistics import Score, measure
from mmzoo.interfaces import Example, Prediction
from mmzoo.modalities.identity import input_key
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig
from mmzoo.registry.isolation import attribute_errors_to


@dataclass(frozen=True)
class ConditionResult:
    """Hold the predictions under one condition, in order, and their score by each metric."""

    scores: dict[str, Score]
    predictions: list[Prediction]


def make_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Return metrics by name.

    Raises:
        UnknownName: there is no such metric. BadRecipe: a wrong option.
    """
    resolved = {name: resolve("metric", PartConfig.of(name, "metric"), key="metric") for name in names}
    return {name: metric.cls(metric.options) for name, metric in resolved.items()}


def score_examples(
    model: MultimodalModel,
    examples: Sequence[Example],
    metrics: Mapping[str, Metric],
    conditions: Mapping[str, Condition],
    *,
    seed: int = 0,
    batch_size: int = 128,
    options: Mapping[str, Any] | None = None,
    advance: Callable[[int, str], None] = lambda count, condition: None,
) -> dict[str, ConditionResult]:
    """Predict the examples under each condition and compare the predictions with the references of ``examples``.

    Args:
        examples: the original examples, which have the references. Those that share an input are resampled together.
        seed: the seed of the bootstrap.
        options: passed to the task's prediction.
        advance: called after each batch with its number of examples and the condition, to show progress.

    Raises:
        DataError: there are no examples, or one has no reference that the task can predict. BadInput: an input cannot be read.
        PluginBroken: a metric fails.
    """
    if not examples:
        raise DataError("there are no examples to measure")
    references = [model.task.references(example) for example in examples]
    groups = [input_key(example.inputs(model.encoder.modality)) for example in examples]
    results = {}
    for name, condition in conditions.items():
        predictions: list[Prediction] = []
        for group in batches(condition.examples, batch_size):
            predictions += model.predict_examples(group, batch_size=batch_size, blank=condition.blank, **(options or {}))
            advance(len(group), name)
        texts = [prediction.text for prediction in predictions]
        scores = {}
        for metric_name, metric in metrics.items():
            with attribute_errors_to(f"metric '{metric_name}' failed on the predictions"):
                scores[metric_name] = measure(metric, texts, references, groups, seed=seed)
        results[name] = ConditionResult(scores, predictions)
    return results
