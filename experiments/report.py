"""Write docs/experiments.md and its plots from the records only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import kills
from experiments.common import ROOT, RUNS, Experiment, Model, read
from mmzoo.checkpoints.summary import format_count
from mmzoo.evaluation.controls import BLANKED, SHUFFLED
from mmzoo.evaluation.statistics import Mean as MeanOfRuns

DOCS = ROOT / "docs"
PAGE = "experiments.md"
NOTE = "<!-- written by `python -m experiments render`; do not edit -->\n\n"
HEAD = """# Experiments

[experiments/README.md](../experiments/README.md) says how to repeat them. Every number is read from the records in
`experiments/runs`, one for each model and seed. A cell is the mean over the seeds with its 95% interval (Student's t over the
seeds); the score of a single seed has the 95% bootstrap interval of its test split.
"""


@dataclass(frozen=True)
class Mean:
    """Hold a mean over seeds with the ends of its 95% interval (Student's t); of a single seed, its score and bootstrap
    interval."""

    value: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, scores: Sequence[Mapping[str, float]]) -> Mean:
        if len(scores) == 1:
            return cls(scores[0]["value"], scores[0]["low"], scores[0]["high"], 1)
        ends = MeanOfRuns.of([score["value"] for score in scores]).to_dict()
        return cls(ends["mean"], ends["low"], ends["high"], len(scores))

    def __str__(self) -> str:
        if self.seeds > 1:
            return f"{self.value:.3f} ± {self.high - self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def render(experiments: Sequence[Experiment], *, runs: Path = RUNS) -> str:
    """Return the page: the tables of each experiment that has records."""
    sections = [section(e, records) for e in experiments if (records := read(e, runs))]
    if (path := runs / kills.RECORD).is_file():
        sections.append(kills.section(json.loads(path.read_text(encoding="utf-8"))))
    return NOTE + "\n".join([HEAD, *sections])


def plot(experiment: Experiment, folder: Path = DOCS, *, runs: Path = RUNS) -> Path:
    """Draw bars of the first metric with their intervals, a dot for each seed, beside the scores with images shuffled; save a
    PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read(experiment, runs)
    models = [model for model in experiment.models if model.name in records]
    metric = experiment.metrics[0]
    figure, axes = pyplot.subplots(figsize=(7, 0.9 + 0.55 * len(models)), layout="constrained")
    for shift, colour, label, pick in ((-0.19, "#2f6db5", metric, scores), (0.19, "#c2c8d0", "inputs shuffled", shuffled)):
        for row, model in enumerate(models):
            picked = [pick(model, record)[metric] for record in records[model.name] if metric in pick(model, record)]
            if not picked:
                continue
            middle, values = Mean.of(picked), [score["value"] for score in picked]
            axes.barh(row + shift, middle.value, 0.36, color=colour, label=label if row == 0 or pick is shuffled else None)
            ends = [[max(0.0, middle.value - middle.low)], [max(0.0, middle.high - middle.value)]]
            axes.errorbar(middle.value, row + shift, xerr=ends, color="black", capsize=3, linewidth=1)
            axes.plot(values, [row + shift] * len(values), ".", color="black", markersize=4)
    axes.set_yticks(range(len(models)), [model.label for model in models])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{metric}, {experiment.split} split, with its 95% interval")
    handles, labels = axes.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    axes.legend(by_label.values(), by_label.keys(), loc="lower right", fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    path = folder / image(experiment)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
    return path


def image(experiment: Experiment) -> str:
    return f"experiments-{experiment.name}.png"


def section(experiment: Experiment, records: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the section of an experiment, with its tables of ``records`` by model."""
    models = [model for model in experiment.models if model.name in records]
    first = records[models[0].name][0]["evaluation"]
    seconds = sum(one["training"]["seconds"] + one["evaluation"]["seconds"] for rows in records.values() for one in rows)
    lines = [f"## {experiment.title}\n", f"{experiment.about}\n", f"![{experiment.title}]({image(experiment)})\n"]
    lines += ["### Scores\n", _table(experiment, models, records, scores)]
    lines += [
        "### The same with inputs shuffled\n",
        _table(experiment, [m for m in models if SHUFFLED in m.controls], records, shuffled),
    ]
    if any(model.each for model in models):
        lines += [
            f"### The first score, {experiment.metrics[0]}, with one input changed\n",
            _controls(experiment, models, records),
        ]
    lines += ["### Each seed\n", _seeds(experiment, models, records)]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    lines.append(
        f"Measured on `{first['dataset']}`, split `{first['split']}`, {first['examples']} examples, fingerprint "
        f"`{first['fingerprint'][:16]}`; {seconds / 60:.0f} minutes in all; {versions}.\n"
    )
    return "\n".join(lines)


def scores(model: Model, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's scores; those of a blind model are on blank pictures, as in its training."""
    evaluation = record["evaluation"]
    return _named(model, evaluation["controls"][BLANKED] if model.blind else evaluation["scores"])


def shuffled(model: Model, record: Mapping[str, Any]) -> dict[str, Any]:
    return _named(model, record["evaluation"]["controls"].get(SHUFFLED, {}))


def _named(model: Model, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return scores by the experiment's names of the metrics."""
    names = {own: name for name, own in model.scores.items()}
    return {names.get(metric, metric): score for metric, score in measured.items()}


def _table(
    experiment: Experiment,
    models: Sequence[Model],
    records: Mapping[str, list[dict[str, Any]]],
    pick: Callable[[Model, Mapping[str, Any]], Mapping[str, Any]],
) -> str:
    rows = [["model", *experiment.metrics, "seeds"]]
    for model in models:
        picked = [pick(model, record) for record in records[model.name]]
        means = [str(Mean.of([one[metric] for one in picked])) if metric in picked[0] else "" for metric in experiment.metrics]
        rows.append([model.label, *means, str(len(picked))])
    return _markdown(rows)


def _controls(experiment: Experiment, models: Sequence[Model], records: Mapping[str, list[dict[str, Any]]]) -> str:
    names = list(dict.fromkeys(name for model in models for name in model.each))
    rows = [["model", *names]]
    for model in [model for model in models if model.each]:
        controls = [record["evaluation"]["controls"] for record in records[model.name]]
        picked = {name: [_named(model, own[name])[experiment.metrics[0]] for own in controls] for name in model.each}
        rows.append([model.label, *(str(Mean.of(picked[name])) if name in picked else "" for name in names)])
    return _markdown(rows)


def _seeds(experiment: Experiment, models: Sequence[Model], records: Mapping[str, list[dict[str, Any]]]) -> str:
    metric = experiment.metrics[0]
    rows = [["model", "seed", metric, "inputs shuffled", "parameters trained", "steps", "training, s", "measuring, s"]]
    for model in models:
        for record in records[model.name]:
            picked = [pick(model, record).get(metric) for pick in (scores, shuffled)]
            cells = ["" if score is None else str(Mean.of([score])) for score in picked]
            trained = sum(part["trained"] for part in record["parameters"].values())
            whole = sum(part["all"] for part in record["parameters"].values())
            spent = [f"{record[key]['seconds']:.0f}" for key in ("training", "evaluation")]
            size = f"{format_count(trained)} of {format_count(whole)}"
            rows.append([model.label, str(record["seed"]), *cells, size, str(record["training"]["steps"]), *spent])
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"
