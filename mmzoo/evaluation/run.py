"""Evaluation: a model, a data set and metrics to scores with intervals, beside controls that cannot see the image."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mmzoo.checkpoints.folder import update_run
from mmzoo.common.energy import Meter, hardware
from mmzoo.common.environment import environment
from mmzoo.common.progress import bar
from mmzoo.data import provenance
from mmzoo.data.batching import batches
from mmzoo.data.dataset import Dataset
from mmzoo.data.fingerprint import fingerprint
from mmzoo.data.open import load_split, open_dataset
from mmzoo.errors import CheckpointError, DataError
from mmzoo.evaluation.metric import Metric
from mmzoo.evaluation.statistics import Score, measure
from mmzoo.interfaces.example import Example
from mmzoo.interfaces.task import Prediction
from mmzoo.modalities.identity import input_key
from mmzoo.modalities.reader import plural
from mmzoo.models.compatibility import check_data
from mmzoo.models.load import load
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig
from mmzoo.registry.isolation import attribute_errors_to
from mmzoo.sharing.locations import is_folder

SHUFFLED, BLANKED = "shuffled", "blanked"
CONTROLS = (SHUFFLED, BLANKED)
SAMPLES, SAMPLE_LENGTH, SAMPLE_TARGETS = 20, 300, 3


@dataclass
class Evaluation:
    """Scores of a model on a split, each with a 95% bootstrap interval, and the same under each control: images (or inputs of
    another modality) ``shuffled`` among the examples, and ``blanked``. A model that ignores them scores the same in all."""

    dataset: str
    split: str
    examples: int
    fingerprint: str
    scores: dict[str, Score]
    controls: dict[str, dict[str, Score]] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    modality: str = "image"  # of what was shuffled and blanked
    local: bool = False
    dataset_options: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    energy: dict[str, Any] | None = None
    samples: list[dict[str, Any]] = field(default_factory=list, repr=False)
    predictions: list[Prediction] = field(default_factory=list, repr=False)
    smaller_is_better: bool = False  # of the first score
    unrecorded: str = ""  # why the result is not in the checkpoint, if it should be

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without the predictions but for the samples."""
        return {
            "dataset": self.dataset,
            "local": self.local,
            "dataset_options": self.dataset_options,
            "split": self.split,
            "examples": self.examples,
            "limit": self.limit,
            "options": self.options,
            "fingerprint": self.fingerprint,
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "controls": {
                control: {name: score.to_dict() for name, score in scores.items()} for control, scores in self.controls.items()
            },
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "device": self.device,
            "hardware": hardware(self.device),
            "energy": self.energy,
            "samples": self.samples,
            "versions": environment(),
        }

    def __str__(self) -> str:
        head = ["metric", "score", *(f"{plural(self.modality)} {control}" for control in self.controls)]
        rows = [[name, str(score), *(str(self.controls[c][name]) for c in self.controls)] for name, score in self.scores.items()]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return f"{self.dataset}, split {self.split}, {self.examples} examples\n" + "\n".join(lines)

    @property
    def ignores_images(self) -> bool:
        """Whether the first score is no better than with shuffled images: their intervals overlap."""
        if SHUFFLED not in self.controls:
            return False
        name = next(iter(self.scores))
        better, worse = self.scores[name], self.controls[SHUFFLED][name]
        if self.smaller_is_better:
            better, worse = worse, better
        return better.low <= worse.high


def evaluate(
    model: MultimodalModel | str | Path,
    *,
    dataset: str | PartConfig | Dataset,
    split: str | None = None,
    metrics: Sequence[str] | None = None,
    controls: Sequence[str] = CONTROLS,
    limit: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    record: bool | None = None,
    samples: int = 5,
    **options: Any,
) -> Evaluation:
    """Measure a model on a split.

    Args:
        model: a model, a checkpoint folder, or a repository as `mmzoo.load` takes it.
        split: its name; None for ``test``, or for the only split that there is.
        metrics: names of metrics; None for those of the model's task.
        controls: of ``"shuffled"`` and ``"blanked"``.
        limit: only the first so many examples.
        seed: of the shuffling and the bootstrap.
        device: where to run; None for where the model lies.
        record: add the result to the checkpoint's run.json and card; None does so when ``model`` is a folder.
        samples: how many examples, evenly spread over the split, are recorded with what the model says of them, for the card;
            20 at most, 0 for none.
        options: to the task's prediction, such as ``num_beams``.

    Raises:
        DataError: the split is missing or empty, or a target is outside the label set. BadInput: an image or clip.
        DoesNotFit: the data is of another modality than the encoder.
    """
    folder = None if isinstance(model, MultimodalModel) or not is_folder(model) else Path(model)
    if record and folder is None:
        raise DataError("record=True needs a checkpoint folder, not a model in memory or in a repository")
    if not isinstance(model, MultimodalModel):
        model = load(model)
    if device is not None:
        model.to(device)
    started = time.monotonic()
    source = open_dataset(dataset)
    examples: Sequence[Example] | list[Example]
    split = split or _default_split(source)
    found = load_split(source, split)
    examples = found if isinstance(found, Sequence) and limit is None else list(islice(found, limit))
    if not examples:
        raise DataError(f"split '{split}' is empty; there is nothing to measure")
    modality = model.encoder.modality
    check_data(model.recipe, examples[0], dataset if isinstance(dataset, str) else type(source).__name__)
    references = [model.task.references(example) for example in examples]
    chosen = {name: _metric(name) for name in (metrics or model.task.metrics)}
    groups = [input_key(example.inputs(modality)) for example in examples]

    conditions = _conditions(examples, controls, seed, modality)
    results: dict[str, dict[str, Score]] = {}
    predictions: dict[str, list[Prediction]] = {}
    where = str(next(model.parameters()).device)
    with Meter(where) as meter, bar("evaluating", len(examples) * len(conditions), shown=progress) as shown:
        for condition, (rows, blank) in conditions.items():
            said: list[Prediction] = []
            for group in batches(rows, batch_size):
                said += model.predict_examples(group, batch_size=batch_size, blank=blank, **options)
                shown.advance(len(group), condition)
            predictions[condition] = said
            texts = [prediction.text for prediction in said]
            results[condition] = {}
            for name, metric in chosen.items():
                with attribute_errors_to(f"metric '{name}' cannot measure what the model says"):
                    results[condition][name] = measure(metric, texts, references, groups, seed=seed)
    data = provenance.describe(dataset)
    del data["license"]  # it is the model's where it was trained on them, and not where it is measured
    evaluation = Evaluation(
        **data,
        split=split,
        examples=len(examples),
        fingerprint=fingerprint(examples),
        scores=results.pop(""),
        controls=results,
        seed=seed,
        seconds=time.monotonic() - started,
        modality=model.modality,
        limit=limit,
        options=provenance.as_json(options),
        device=where,
        energy=meter.energy,
        samples=_samples(examples, references, predictions[""], min(samples, SAMPLES)),
        predictions=predictions[""],
        smaller_is_better=next(iter(chosen.values())).smaller_is_better,
    )
    _record(model, evaluation)
    if folder is not None and record is not False:
        try:
            update_run(folder, model.provenance.run, model.card())
        except CheckpointError as error:  # the scores are worth more than their record
            evaluation.unrecorded = str(error)
    return evaluation


def _default_split(dataset: Dataset) -> str:
    splits = dataset.splits()
    return splits[0] if len(splits) == 1 else "test"


def _conditions(
    examples: Sequence[Example], controls: Sequence[str], seed: int, modality: str = "image"
) -> dict[str, tuple[Sequence[Example], bool]]:
    """The examples to measure on, and whether their inputs are blanked, by control; the empty name is the model as it is."""
    if unknown := [control for control in controls if control not in CONTROLS]:
        raise DataError(f"unknown control '{unknown[0]}'; there are: {', '.join(CONTROLS)}")
    found: dict[str, tuple[Sequence[Example], bool]] = {"": (examples, False)}
    for control in controls:
        found[control] = (_shuffled(examples, seed, modality), False) if control == SHUFFLED else (examples, True)
    return found


def _metric(name: str) -> Metric:
    found = resolve("metric", PartConfig.of(name, "metric"), key="metric")
    return found.cls(found.options)


def _shuffled(examples: Sequence[Example], seed: int, modality: str = "image") -> list[Example]:
    """The examples with inputs dealt out anew: no input stays where it was if there are two or more. Examples that
    shared an input share another one."""
    inputs = {input_key(source): source for example in examples for source in example.inputs(modality)}
    keys = list(inputs)
    order = np.random.default_rng(seed).permutation(len(keys))
    # Each input goes to the next of a random cycle, which leaves none in place.
    dealt = {keys[a]: inputs[keys[b]] for a, b in zip(order, np.roll(order, 1), strict=True)}
    return [
        example.with_inputs(modality, [dealt[input_key(source)] for source in example.inputs(modality)]) for example in examples
    ]


def _record(model: MultimodalModel, evaluation: Evaluation) -> None:
    """Keep the result in the model's run, in place of an older one of the same examples with the same options."""
    said = evaluation.to_dict()

    def of(one: dict[str, Any]) -> tuple[Any, ...]:
        return one["dataset"], one["split"], one["examples"], one.get("dataset_options") or {}, one.get("options") or {}

    kept = [old for old in model.provenance.run.get("evaluations", []) if of(old) != of(said)]
    model.provenance.run["evaluations"] = [*kept, said]


def _samples(
    examples: Sequence[Example], references: Sequence[Sequence[str]], said: Sequence[Prediction], count: int
) -> list[dict[str, Any]]:
    """Examples with the same distance between them, from the first to the last: nobody has chosen the good ones."""
    step = (len(examples) - 1) / max(1, count - 1)
    found = []
    for i in dict.fromkeys(round(step * i) for i in range(count)):
        prediction = said[i].label if said[i].value is None else f"{said[i].value:.4g}"
        targets = [_cut(target) for target in references[i][:SAMPLE_TARGETS]]
        example = examples[i]
        found.append(
            {"id": _cut(example.id), "text": _cut(example.text), "targets": targets, "prediction": _cut(prediction or "")}
        )
    return found


def _cut(text: str) -> str:
    return text if len(text) <= SAMPLE_LENGTH else f"{text[: SAMPLE_LENGTH - 3]}..."
