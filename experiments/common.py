"""Define and run experiments: a `mmzoo.train` and a `mmzoo.evaluate` for each model and seed, and a record.

A record is a JSON file in ``experiments/runs/EXPERIMENT``, beside the first seed's model card. A run that has a record is not
repeated, unless its checkpoint is gone and another model starts from it; the tables are made from these files only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmzoo
from mmzoo.checkpoints.folder import is_checkpoint
from mmzoo.checkpoints.screening import CARD, RUN
from mmzoo.errors import MmzooError, UnknownName
from mmzoo.evaluation.controls import BLANKED, SHUFFLED
from mmzoo.recipes.merging import merge
from mmzoo.recipes.schema import PartConfig
from mmzoo.training.output import last_checkpoint

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "experiments" / "runs"
CURVE = 40  # points of a loss curve that are kept

QUICK = {"training": {"max_steps": 2, "batch_size": 4, "warmup": 0}}
QUICK_EXAMPLES = 16


class ExperimentError(MmzooError):
    """Report an experiment that cannot be run, or whose records are of other settings."""


@dataclass(frozen=True)
class Model:
    """Define one row of the table.

    Args:
        name: names its records and checkpoints.
        label: its name in the table.
        recipe: the recipe, as `mmzoo.build` takes its parts.
        start: parts that start from another model of the experiment, of the same seed: ``{"language_model": "text"}``.
        dataset: what it is trained on, if not the experiment's.
        datasets: what each of its tasks is trained and measured on, if not all on one. ``TASK/METRIC`` names its metrics.
        validation: as `mmzoo.train` takes it.
        blind: it is trained on blank pictures, and its scores are those on blank pictures.
        sees: it gets pictures (or other inputs), so it is also measured with its inputs shuffled.
        scores: its own name of each metric of the experiment, if it has other tasks than others; the rest are not measured.
        each: further controls, of one modality each, such as ``missing:audio``.
    """

    name: str
    label: str
    recipe: Mapping[str, Any]
    start: Mapping[str, str] = field(default_factory=dict)
    dataset: str | Mapping[str, Any] | None = None
    datasets: Mapping[str, str] = field(default_factory=dict)
    validation: Mapping[str, str] | None = None
    blind: bool = False
    sees: bool = True
    scores: Mapping[str, str] = field(default_factory=dict)
    each: Sequence[str] = ()

    @property
    def controls(self) -> tuple[str, ...]:
        return ((BLANKED,) if self.blind else (SHUFFLED,) if self.sees else ()) + tuple(self.each)


@dataclass(frozen=True)
class Experiment:
    """Hold models that are trained on one data set and measured on one split of it by the same metrics, the first of which is
    plotted."""

    name: str
    title: str
    about: str
    dataset: str | Mapping[str, Any]
    split: str
    metrics: Sequence[str]
    models: Sequence[Model]
    seeds: Sequence[int] = (0, 1, 2)


def run(
    experiment: Experiment,
    *,
    work: Path,
    runs: Path = RUNS,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] = (),
    quick: bool = False,
) -> Iterator[Path]:
    """Make the records that do not exist, one after the other; yield the path of each, new or existing.

    Args:
        work: the folder of checkpoints.
        runs: the folder of records.
        only: names of models; all of them if empty.
        quick: a few steps on a few examples, to try the harness.

    Raises:
        ExperimentError: an existing record has other settings, or there is no such model.
        MmzooError: what training and measuring raise.
    """
    models = {model.name: model for model in experiment.models}
    if unknown := [name for name in only if name not in models]:
        raise ExperimentError(f"{experiment.name} has no model '{unknown[0]}'; there are: {', '.join(models)}")
    for seed in experiment.seeds if seeds is None else seeds:
        for model in models.values():
            if not only or model.name in only:
                yield _record(experiment, model, seed, work, runs, quick=quick)


def read(experiment: Experiment, runs: Path = RUNS) -> dict[str, list[dict[str, Any]]]:
    """Return the records of each model that has any, by seed."""
    by_model = {}
    for model in experiment.models:
        paths = sorted((runs / experiment.name).glob(f"{model.name}-seed*.json"))
        records = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.stem.rpartition("-")[0] == model.name]
        if records:
            by_model[model.name] = sorted(records, key=lambda record: record["seed"])
    return by_model


def settings(experiment: Experiment, model: Model, *, quick: bool = False) -> dict[str, Any]:
    """Return all that decides a record, except for the seed."""
    return {
        "recipe": _plain(_quick(model) if quick else model.recipe),
        "start": dict(model.start),
        "trained_on": _plain(model.dataset or experiment.dataset),
        "measured_on": _plain(experiment.dataset),
        "split": experiment.split,
        "metrics": [model.scores[name] for name in experiment.metrics if name in model.scores] or list(experiment.metrics),
        "blind": model.blind,
        "quick": quick,
        **({"datasets": dict(model.datasets), "validation": dict(model.validation or {})} if model.datasets else {}),
    }


def _quick(model: Model) -> dict[str, Any]:
    few = {"training": {"evaluate_limit": QUICK_EXAMPLES}} if model.validation else {}
    return merge(merge(model.recipe, QUICK), few)


def _record(experiment: Experiment, model: Model, seed: int, work: Path, runs: Path, *, quick: bool) -> Path:
    path = runs / experiment.name / f"{model.name}-seed{seed}.json"
    chosen = settings(experiment, model, quick=quick)
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8"))["settings"] != chosen:
            raise ExperimentError(f"{path} was made with other settings than the code has now; remove it to run it again")
        return path
    folder = _trained(experiment, model, seed, work, quick=quick)
    evaluation = _evaluate(experiment, model, folder, chosen["metrics"], seed, quick=quick)
    run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    training = run["training"]
    training["history"] = training["history"][:: max(1, len(training["history"]) // CURVE)]
    record = {
        "experiment": experiment.name,
        "model": model.name,
        "seed": seed,
        "settings": chosen,
        "parameters": _parameters(folder),
        **({"weights": run["weights"]} if "weights" in run else {}),
        "training": training,
        "evaluation": evaluation,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if seed == experiment.seeds[0]:
        path.with_suffix(".md").write_text((folder / CARD).read_text(encoding="utf-8"), encoding="utf-8")
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _evaluate(
    experiment: Experiment, model: Model, folder: Path, metrics: Sequence[str], seed: int, *, quick: bool
) -> dict[str, Any]:
    """Measure a model on the experiment's data set, or each task on its own; then the names of metrics begin with the task."""
    options: dict[str, Any] = {"split": experiment.split, "controls": model.controls, "seed": seed, "progress": False}
    if not model.datasets:
        dataset = _dataset(experiment.dataset, quick=quick)
        return mmzoo.evaluate(folder, dataset=dataset, metrics=metrics, **options).to_dict()
    parts = []
    for task, name in model.datasets.items():
        own = [metric for metric in metrics if metric.partition("/")[0] == task]
        several = len(model.datasets) > 1
        chosen = own if several else [metric.partition("/")[2] for metric in own]
        part = mmzoo.evaluate(folder, dataset=_dataset(name, quick=quick), metrics=chosen, **options).to_dict()
        for scores in (part["scores"], *part["controls"].values()):
            if not several:
                scores |= {f"{task}/{metric}": scores.pop(metric) for metric in list(scores)}
        parts.append(part)
    joined = {key: " + ".join(str(part[key]) for part in parts) for key in ("dataset", "examples", "fingerprint")}
    controls = {name: {key: score for part in parts for key, score in part["controls"][name].items()} for name in model.controls}
    scores = {key: score for part in parts for key, score in part["scores"].items()}
    return {**parts[0], **joined, "scores": scores, "controls": controls, "seconds": sum(part["seconds"] for part in parts)}


def _trained(experiment: Experiment, model: Model, seed: int, work: Path, *, quick: bool) -> Path:
    """Return the checkpoint of a model; if it does not exist, train the model, after those that it starts from."""
    folder = work / experiment.name / f"{model.name}-seed{seed}"
    if is_checkpoint(folder):
        return folder
    chosen = settings(experiment, model, quick=quick)
    recipe = {"name": f"{experiment.name}-{model.name}", "summary": model.label, **chosen["recipe"]}
    models = {other.name: other for other in experiment.models}
    for kind, name in model.start.items():
        weights = _trained(experiment, models[name], seed, work, quick=quick)
        recipe = merge(recipe, {kind: {"weights": str(weights)}})
    recipe = merge(recipe, {"training": {"seed": seed, "blank_images": model.blind}})
    try:
        data: dict[str, Any] = {"dataset": _dataset(chosen["trained_on"], quick=quick)}
        if model.datasets:
            datasets = {task: _dataset(name, quick=quick) for task, name in model.datasets.items()}
            data = {"datasets": datasets, "validation": model.validation}
        unfinished = last_checkpoint(folder) is not None
        training = mmzoo.train(recipe, **data, output=folder, resume=unfinished, overwrite=not unfinished, progress=False)
    except UnknownName as error:
        raise ExperimentError(f"{experiment.name}, {model.name}: {error}\nexperiments/README.md says what to install") from None
    if not training.finished:
        raise KeyboardInterrupt
    return folder


def _dataset(chosen: str | Mapping[str, Any], *, quick: bool) -> PartConfig:
    part = PartConfig.of(chosen, "dataset")
    return part.with_options(limit=QUICK_EXAMPLES) if quick else part


def _parameters(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the size of each part, and how much of it was trained."""
    parts = mmzoo.load(folder).summary().parts
    return {part.part: {"use": part.use, "all": part.parameters, "trained": part.trained} for part in parts}


def _plain(data: Any) -> Any:
    """Return data as JSON would return it, so that requested and recorded settings can be compared."""
    return json.loads(json.dumps(data))
