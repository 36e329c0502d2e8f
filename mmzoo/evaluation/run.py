"""Evaluate a model on a data set: open the data, score the model beside its controls, and record the result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mmzoo.checkpoints.folder import update_run
from mmzoo.checkpoints.record import control_title, skipped_record
from mmzoo.common import processes
from mmzoo.common.energy import Meter, hardware
from mmzoo.common.environment import environment
from mmzoo.common.progress import bar
from mmzoo.data import provenance
from mmzoo.data.bad import Bad, read_all
from mmzoo.data.fingerprint import fingerprint
from mmzoo.data.mixture import Source, Spec, open_sources
from mmzoo.data.open import for_task, takes_default
from mmzoo.errors import BadRecipe, CheckpointError, DataError
from mmzoo.evaluation.controls import AS_IS, CONTROLS, SHUFFLED, default_controls, make_conditions
from mmzoo.evaluation.scoring import describe_outside_labels, metrics_of, outside_labels, score_examples, usable_examples
from mmzoo.evaluation.statistics import Score
from mmzoo.interfaces import Example, Prediction
from mmzoo.modalities.reader import plural
from mmzoo.models.compatibility import check_data
from mmzoo.models.load import load
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.schema import Recipe
from mmzoo.sharing.locations import is_folder, local_folder

MAX_SAMPLES, MAX_SAMPLE_LENGTH, MAX_SAMPLE_TARGETS = 20, 300, 3  # of examples that a card shows
UNRECORDED = {"modalities", "predictions", "errors", "unrecorded"}  # attributes of an Evaluation


@dataclass
class Evaluation:
    """Hold the scores of a model on a split, each with a 95% bootstrap interval, and the same scores under each control.

    Under the control ``shuffled`` the images (or inputs of another modality) are exchanged among the examples; under
    ``blanked`` each is replaced by the mean image. A model that ignores its inputs scores the same under both.
    """

    dataset: str
    split: str
    examples: int
    fingerprint: str
    scores: dict[str, Score]
    controls: dict[str, dict[str, Score]] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    modalities: tuple[str, ...] = ("image",)  # the inputs that were shuffled and blanked
    local: bool = False
    dataset_options: dict[str, Any] = field(default_factory=dict)
    task: str | None = None  # the only one that was measured, because the data set was named for it
    limit: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    energy: dict[str, Any] | None = None
    notes: dict[str, str] = field(default_factory=dict)  # of scores: how they were computed
    samples: list[dict[str, Any]] = field(default_factory=list, repr=False)
    skipped: int = 0  # examples that could not be used; the scores are of the others
    processes: int = 1  # that shared the work
    predictions: list[Any] = field(default_factory=list, repr=False)  # by task if there are several
    outside_labels: dict[str, list[str]] = field(default_factory=dict)  # by task, a target of each such example; a record counts
    skipped_examples: list[dict[str, str]] = field(default_factory=list, repr=False)  # ``id`` and ``error`` of the first 100
    errors: frozenset[str] = frozenset()  # the scores that are better if they are smaller
    unrecorded: str = ""  # why the result could not be recorded in the checkpoint

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as plain data; of the predictions it contains only the samples."""
        record = asdict(replace(self, predictions=[]))
        record = {name: value for name, value in record.items() if name not in UNRECORDED}
        record["outside_labels"] = {task: len(targets) for task, targets in self.outside_labels.items()}
        return {**record, "seconds": round(self.seconds, 1), "hardware": hardware(self.device), "versions": environment()}

    def __str__(self) -> str:
        conditions = {"score": self.scores, **{control_title(name, self.modalities): own for name, own in self.controls.items()}}
        if len(self.controls) <= len(CONTROLS):
            rows = [["metric", *conditions], *([name, *(str(own[name]) for own in conditions.values())] for name in self.scores)]
        else:  # too many for one line
            rows = [["metric", "inputs", "score"]]
            for name in self.scores:
                for title, own in conditions.items():
                    first = title == "score"
                    rows.append([name if first else "", "as they are" if first else title, str(own[name])])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines += [f"{', '.join(names)}: {note}" for note, names in self._noted().items()]
        outside = self.outside_labels.items()
        lines += [f"{describe_outside_labels(task, targets)}: counted as wrong" for task, targets in outside]
        skipped = f" ({self.skipped} skipped)" if self.skipped else ""
        return "\n".join([f"{self.dataset}, split {self.split}, {self.examples} examples{skipped}", *lines])

    def _noted(self) -> dict[str, list[str]]:
        """Return the scores with each note."""
        return {note: [name for name in self.notes if self.notes[name] == note] for note in self.notes.values()}

    @property
    def ignores_images(self) -> bool:
        """Return whether the first score is no better than with shuffled images (or other inputs): their intervals overlap."""
        return SHUFFLED in self.controls and self._unchanged(next(iter(self.scores)), SHUFFLED)

    @property
    def ignored(self) -> list[str]:
        """List in words what seems to be ignored: all inputs by a task, or one modality by every task."""
        firsts = {name.partition("/")[0] if "/" in name else "": name for name in reversed(self.scores)}
        inputs = " and ".join(map(plural, self.modalities))
        found = []
        for task, metric in reversed(firsts.items()):
            if SHUFFLED in self.controls and self._unchanged(metric, SHUFFLED):
                found.append(f"{f'the task {task}' if task else 'the model'} scores no better than with shuffled {inputs}")
        for modality in self.modalities:
            control = f"{SHUFFLED}:{modality}"
            if control in self.controls and all(self._unchanged(metric, control) for metric in firsts.values()):
                found.append(f"the model scores no better than with shuffled {plural(modality)} in any task")
        return found

    def _unchanged(self, metric: str, control: str) -> bool:
        score, changed = self.scores[metric], self.controls[control][metric]
        return changed.low <= score.high if metric in self.errors else score.low <= changed.high


@processes.together()
def evaluate(
    model: MultimodalModel | str | Path,
    *,
    dataset: Spec | Mapping[str, Spec],
    split: str | None = None,
    metrics: Sequence[str] | None = None,
    controls: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    record: bool | None = None,
    samples: int = 5,
    skip_bad: bool = False,
    bases: Mapping[str, str | Path] | None = None,
    **options: Any,
) -> Evaluation:
    """Measure a model on a split. Processes that `accelerate launch` started share the work, and return the same.

    Args:
        model: a model, a checkpoint folder, or a repository as `mmzoo.load` takes it.
        dataset: a name, a path, an id, a mapping with options, or a `Dataset`, whose tasks are those that it has targets of; or
            ``{TASK: ...}``, for one of several tasks. ``NAME:SPLIT`` names its split.
        split: its name; None for ``test``, or for the only split if there is one.
        metrics: names of metrics; None for those of the tasks. Of several tasks they are named ``task/metric``.
        controls: names such as ``"shuffled"``, ``"blanked"`` and ``"missing"``, of all inputs, or of one modality
            (``"shuffled:audio"``, ``"blanked:text"``); None for shuffled and blanked of all inputs and of each by itself.
        limit: measure only this many examples, the first ones.
        batch_size: examples in a batch; it changes speed and memory, not scores.
        seed: the seed of the shuffling and the bootstrap.
        device: where to run; None for the model's device.
        record: add the result to the checkpoint's run.json and card; None does so when ``model`` is a folder.
        samples: how many examples to record with their predictions, for the card: evenly spread over the split, at most 20.
        skip_bad: skip examples that cannot be used, instead of stopping: whose input cannot be read, whose text exceeds the
            context, or whose target is empty or none that the task can represent. The scores are of the others; how many were
            skipped is reported and recorded.
        bases: as `mmzoo.load` takes them, for a model that is not loaded yet.
        options: passed to the task's prediction, such as ``num_beams``.

    Raises:
        DataError: the split is missing or empty, or an example has no target. BadInput: an input cannot be read.
        DoesNotFit: the data is of another modality than the encoder's. BadRecipe: an option of the prediction.
    """
    folder = None if isinstance(model, MultimodalModel) or not is_folder(model) else Path(model)
    if record and folder is None:
        raise DataError("record=True needs a checkpoint folder, not a model in memory or in a repository")
    if not isinstance(model, MultimodalModel):
        with processes.main_first():
            model = local_folder(model)
        model = load(model, bases=bases)
    if device is not None:
        model.to(device)
    started = time.monotonic()
    bad: Bad = []
    with processes.main_first():
        source, split, examples = _open(model.recipe, dataset, split, limit, bad if skip_bad else None)
    check_data(model.recipe, examples[0], source.title)
    chosen = metrics_of(model, metrics, _served(model.recipe, source, examples))
    if "task" in options:
        name = f"{options['task']}/{next(iter(chosen)).rpartition('/')[2]}"
        raise BadRecipe(f"task: an evaluation measures every task; choose metrics of one: metrics=['{name}']")
    controls = default_controls(model.modalities) if controls is None else controls
    if skip_bad:
        examples = usable_examples(model, examples, bad, batch_size)
    inputs: Any = {"modalities": model.modalities, "optional": model.takes_missing_inputs}
    conditions = make_conditions(examples, controls, seed=seed, **inputs)
    where = str(model.device)
    with Meter(where) as meter, bar("evaluating", len(examples) * len(conditions), shown=progress) as shown:
        results = score_examples(
            model, examples, chosen, conditions, seed=seed, batch_size=batch_size, options=options, advance=shown.advance
        )
    predictions = results[AS_IS].predictions

    def measured() -> dict[str, Any]:
        return {
            "fingerprint": fingerprint(examples),
            "samples": _sample(model, examples, predictions, min(samples, MAX_SAMPLES)),
            "outside_labels": outside_labels(model, examples),
            "device": where,
            "energy": meter.energy,
            "seconds": time.monotonic() - started,
        }

    data = provenance.describe(source.spec)
    del data["license"]
    evaluation = Evaluation(
        **data,
        **processes.once(measured),
        task=source.task,
        split=split,
        examples=len(examples),
        skipped=len(bad),
        skipped_examples=skipped_record(bad),
        processes=processes.count(),
        scores=results[AS_IS].scores,
        controls={name: result.scores for name, result in results.items() if name != AS_IS},
        seed=seed,
        modalities=tuple(model.modalities),
        limit=limit,
        options=provenance.as_json(options),
        notes=results[AS_IS].notes,
        predictions=predictions,
        errors=frozenset(name for name, metric in chosen.items() if metric.smaller_is_better),
    )
    _add_to_run(model.provenance.run, evaluation)
    if folder is not None and record is not False:
        evaluation.unrecorded = processes.once(lambda: _record(model, folder))
    return evaluation


def _record(model: MultimodalModel, folder: Path) -> str:
    """Write the model's run record and card into its checkpoint, or return why that fails; the scores are returned anyway."""
    try:
        update_run(folder, model.provenance.run, model.card())
    except CheckpointError as error:
        return str(error)
    return ""


def open_source(recipe: Recipe, dataset: Spec | Mapping[str, Spec]) -> Source:
    """Open a data set for the tasks that it has targets of, or for the one that it is named for."""
    sources = open_sources(recipe, dataset, complete=False)
    if len(sources) > 1:
        raise DataError("an evaluation measures one data set; evaluate the others by themselves")
    return sources[0]


def _served(recipe: Recipe, source: Source, examples: Sequence[Example]) -> list[str]:
    """Return the tasks that a data set has targets of; all if it has none of any, which is an error later."""
    if source.task is not None:
        return [source.task]
    return [task for task in recipe.tasks if any(for_task(recipe, task, each).targets for each in examples)] or list(recipe.tasks)


def _open(
    recipe: Recipe, dataset: Spec | Mapping[str, Spec], split: str | None, limit: int | None, bad: Bad | None
) -> tuple[Source, str, Sequence[Example]]:
    """Return the data set, the split to measure, and its first ``limit`` examples; all if that is None. With ``bad`` rows that
    cannot be read are left out."""
    source = open_source(recipe, dataset)
    if not (split := split or source.split):
        split = splits[0] if len(splits := source.dataset.splits()) == 1 else "test"
    loaded = source.load(recipe, split)
    if bad is not None:
        examples = read_all(loaded, limit, bad)
    else:
        examples = loaded if isinstance(loaded, Sequence) and limit is None else list(islice(loaded, limit))
    if not examples:
        raise DataError(f"split '{split}' is empty; there is nothing to measure")
    return source, split, examples


def _add_to_run(run: dict[str, Any], evaluation: Evaluation) -> None:
    """Add a result to a run record, in place of an older one on the same examples with the same options."""

    def setting(result: dict[str, Any]) -> list[Any]:
        options = [result.get(name) or {} for name in ("dataset_options", "options")]
        return [result.get(name) for name in ("dataset", "task", "split", "examples")] + options

    new = evaluation.to_dict()
    run["evaluations"] = [*(old for old in run.get("evaluations", []) if setting(old) != setting(new)), new]


def _sample(model: MultimodalModel, examples: Sequence[Example], predictions: Sequence[Any], count: int) -> list[dict[str, Any]]:
    """Return ``count`` examples with their predictions, for the card: evenly spread, so that nobody selects the good ones."""
    step = (len(examples) - 1) / max(1, count - 1)
    rows = []
    several = len(model.tasks) > 1
    for i in dict.fromkeys(round(step * i) for i in range(count)):
        for name in model.tasks if not several else predictions[i]:
            example = for_task(model.recipe, name, examples[i])
            if not example.targets and not takes_default(model.recipe, name):
                continue
            text = _text_of(predictions[i][name] if several else predictions[i])
            targets = [_shorten(target) for target in model.tasks[name].references(example)[:MAX_SAMPLE_TARGETS]]
            asked = f"{name}: {example.text}" if several else example.text
            rows.append({"id": _shorten(example.id), "text": _shorten(asked), "targets": targets, "prediction": _shorten(text)})
    return rows[:MAX_SAMPLES]


def _text_of(prediction: Prediction) -> str:
    numbers = prediction.values or (() if prediction.value is None else (prediction.value,))
    return ", ".join(f"{number:.4g}" for number in numbers) if numbers else prediction.text


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SAMPLE_LENGTH else f"{text[: MAX_SAMPLE_LENGTH - 3]}..."
