"""Sum up models that were trained alike with several seeds: the mean of each number with its interval, from their records only.

A folder of seeds holds a checkpoint folder for each (``seed-0``, ...), ``seeds.json`` and a card for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmzoo.checkpoints import screening
from mmzoo.checkpoints.card import cell
from mmzoo.checkpoints.folder import MAX_JSON, SEEDS, read_manifest, validate
from mmzoo.checkpoints.record import (
    Count,
    EvaluationRecord,
    OpenRecord,
    RunRecord,
    TrainingRecord,
    ValidationRecord,
    control_title,
)
from mmzoo.checkpoints.screening import CARD, RUN
from mmzoo.common.files import write_atomically
from mmzoo.common.sanitize import one_line
from mmzoo.errors import CheckpointError
from mmzoo.evaluation.run import Evaluation, evaluate
from mmzoo.evaluation.statistics import Mean


class SeedsRecord(OpenRecord):
    """Hold what `SeedSummary.read` needs of seeds.json; the rest of it is for other programs."""

    recipe: dict[str, Any]
    data: dict[str, Any]
    seeds: list[Count]  # that are finished


@dataclass(frozen=True)
class Row:
    """Hold one number of each seed; of a score also the ``control`` that it was measured under."""

    name: str
    values: tuple[float, ...]
    control: str = ""
    digits: int = 4

    @property
    def label(self) -> str:
        return f"{self.name}, {control_title(self.control, ['inputs'])}" if self.control else self.name

    @property
    def mean(self) -> Mean:
        return Mean.of(self.values)

    def cells(self) -> list[str]:
        """Return the row of a table: label, values and mean."""
        values = [f"{value:.{self.digits}f}" for value in self.values]
        return [self.label, *values, self.mean.text(self.digits)]

    def to_dict(self) -> dict[str, Any]:
        return {**self.mean.to_dict(), "values": list(self.values)}


@dataclass(frozen=True)
class Table:
    """Hold the numbers of several seeds that belong together: of their training, or of one evaluation."""

    title: str
    seeds: tuple[int, ...]
    rows: list[Row]
    about: dict[str, Any] = field(default_factory=dict)  # the data set, split, ... of an evaluation

    @classmethod
    def of_evaluations(cls, records: Mapping[int, EvaluationRecord]) -> Table:
        """Return the table of one evaluation, from its record of each seed."""
        first, every = next(iter(records.values())), list(records.values())
        conditions = {"": first.scores, **first.controls}
        rows = []
        for metric in first.scores:
            for control in conditions:
                scores = [(each.controls.get(control, {}) if control else each.scores).get(metric) for each in every]
                if all(score is not None for score in scores):
                    rows.append(Row(metric, tuple(score.value for score in scores if score is not None), control))
        return cls(_title(first), tuple(records), rows, _setting(first))

    def to_dict(self) -> dict[str, Any]:
        """Return what was measured, and the means of the scores by metric and, under ``controls``, by control and metric."""
        scores: dict[str, Any] = {}
        controls: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            (controls.setdefault(row.control, {}) if row.control else scores)[row.name] = row.to_dict()
        return {**self.about, "scores": scores, "controls": controls}

    def cells(self) -> list[list[str]]:
        """Return the head and the rows as text."""
        return [["", *(f"seed {seed}" for seed in self.seeds), "mean"], *(row.cells() for row in self.rows)]

    def __str__(self) -> str:
        cells = self.cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
        return "\n".join([self.title, *lines])


@dataclass(frozen=True)
class SeedSummary:
    """Hold the records of the finished models in a folder of seeds.

    Attributes:
        recipe, data: what was asked for, without the seed; `mmzoo.train_seeds` continues only the same.
        runs: the contents of run.json by seed.
    """

    folder: Path
    recipe: dict[str, Any]
    data: dict[str, Any]
    runs: dict[int, RunRecord]

    @classmethod
    def of(cls, folder: Path, recipe: dict[str, Any], data: dict[str, Any], seeds: Sequence[int]) -> SeedSummary:
        """Read the records of these seeds."""
        paths = {seed: folder_of(folder, seed) / RUN for seed in sorted(seeds)}
        runs = {seed: validate(RunRecord, _read_json(path), path) for seed, path in paths.items()}
        return cls(folder, recipe, data, runs)

    @classmethod
    def read(cls, folder: str | Path) -> SeedSummary:
        """Read a folder of seeds.

        Raises:
            CheckpointError: it is none, or a file is not valid.
        """
        folder = Path(folder).expanduser()
        record = validate(SeedsRecord, _read_json(folder / SEEDS), folder / SEEDS)
        return cls.of(folder, record.recipe, record.data, record.seeds)

    def tables(self) -> list[Table]:
        """Return the table of the training, and that of each evaluation that is recorded in every seed."""
        if not self.runs:
            return []
        trainings = [run.training for run in self.runs.values() if run.training is not None]
        tables = [Table("Training", tuple(self.runs), _training_rows(trainings))]
        evaluations = [{_key(each): each for each in run.evaluations} for run in self.runs.values()]
        for key in evaluations[0]:
            if all(key in own for own in evaluations):
                by_seed = dict(zip(self.runs, (own[key] for own in evaluations), strict=True))
                tables.append(Table.of_evaluations(by_seed))
        return tables

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of seeds.json."""
        tables = self.tables()
        return {
            "recipe": self.recipe,
            "data": self.data,
            "seeds": list(self.runs),
            "interval": _method(len(self.runs)),
            "training": {row.name: row.to_dict() for table in tables[:1] for row in table.rows},
            "evaluations": [table.to_dict() for table in tables[1:]],
        }

    def card(self) -> str:
        """Return the card of all seeds as Markdown."""
        name, first = self.recipe.get("name") or "unnamed", next(iter(self.runs), 0)
        seeds = ", ".join(map(str, self.runs))
        lines = [
            f"# {cell(str(name))}: {len(self.runs)} seeds\n",
            f"Models that differ only in their seed ({seeds}). Each is in its own folder, with its card: "
            f"`{folder_of(Path(), first)}`, ... Each interval is {_method(len(self.runs))}: it says how much the seed decides. "
            "How exact the scores of one model are, for the size of the split, its own card says.\n",
            f'```python\nimport mmzoo\n\nmodel = mmzoo.load("path/to/this/folder/{folder_of(Path(), first)}")\n```\n',
        ]
        for table in self.tables():
            head, *rows = ([cell(text) for text in row] for row in table.cells())
            lines += [f"## {cell(table.title)}\n", _markdown(head), _markdown(["---"] * len(head)), *map(_markdown, rows), ""]
        return screening.inert("\n".join(lines))

    def write(self) -> None:
        """Write seeds.json and the card.

        Raises:
            CheckpointError: a file cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / SEEDS, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")
            if self.runs:
                write_atomically(self.folder / CARD, self.card())
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot be written: {error.strerror or error}") from None


def folder_of(folder: Path, seed: int) -> Path:
    """Return where the model of a seed is."""
    return folder / f"seed-{seed}"


def evaluate_seeds(folder: str | Path, **options: Any) -> tuple[Table, dict[int, Evaluation]]:
    """Measure each model of a folder that `mmzoo.train_seeds` made, record the results, and write the card of all again.

    Args:
        options: as `mmzoo.evaluate` takes them; ``record=False`` changes no file.

    Returns:
        The scores of all seeds with their means, and the evaluation of each seed.

    Raises:
        CheckpointError: the folder holds no seeds, or a file is not valid. What `mmzoo.evaluate` raises.
    """
    summary = SeedSummary.read(folder)
    if not summary.runs:
        raise CheckpointError(f"{folder}: no seed is finished; run the same mmzoo train command with --resume")
    for seed in summary.runs:
        read_manifest(folder_of(summary.folder, seed))  # all of them, before the first is measured
    evaluations = {seed: evaluate(folder_of(summary.folder, seed), **options) for seed in summary.runs}
    if options.get("record") is not False:
        SeedSummary.read(folder).write()
    records = {seed: EvaluationRecord.model_validate(each.to_dict()) for seed, each in evaluations.items()}
    return Table.of_evaluations(records), evaluations


def _read_json(path: Path) -> dict[str, Any]:
    return screening.read_json(path, MAX_JSON, numbers=True)


def _training_rows(trainings: Sequence[TrainingRecord]) -> list[Row]:
    """Return steps, last loss, and the validation scores of the best steps, as far as every seed has them."""
    rows = [Row("steps", tuple(float(each.steps) for each in trainings), digits=0)]
    if all(each.history for each in trainings):
        rows.append(Row("last loss", tuple(each.history[-1].loss for each in trainings)))
    best = [_best_scores(each.validation) for each in trainings]
    names = [name for name in best[0] if all(name in own for own in best)]
    return rows + [Row(name, tuple(own[name] for own in best), digits=0 if name == "best step" else 4) for name in names]


def _best_scores(validation: ValidationRecord | None) -> dict[str, float]:
    """Return the best step and its scores that are numbers; nothing without any."""
    if validation is None or (best := validation.best) is None:
        return {}
    scores = next((entry.scores for entry in validation.history if entry.step == best.step), {})
    return {"best step": best.step, **{f"validation {name}": score for name, score in scores.items() if score is not None}}


def _setting(record: EvaluationRecord) -> dict[str, Any]:
    """Return what two records of one evaluation have in common."""
    names = ("dataset", "dataset_options", "split", "task", "examples", "limit", "options", "fingerprint")
    return {name: getattr(record, name) for name in names}


def _key(record: EvaluationRecord) -> str:
    return json.dumps(_setting(record), sort_keys=True, default=str)


def _title(record: EvaluationRecord) -> str:
    first = "the first " if record.limit is not None else ""
    options = "".join(f", {key}={value}" for key, value in {**record.dataset_options, **record.options}.items())
    return one_line(f"{record.dataset}, split {record.split}, {first}{record.examples} examples{options}")


def _method(count: int) -> str:
    if count < 2:
        return "not given for a single seed"
    return f"the 95% interval of Student's t for the mean of {count} seeds, with {count - 1} degrees of freedom"


def _markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
