"""Log a training to trackers, through the callbacks of `transformers.integrations`.

Each tracker's callback of transformers logs what is a number. `Tracker` gives it the losses by term, the learning rates by part
and the scores on validation data under names of their own, and its subclasses add the recipe, sample predictions with their
pictures, and what a resumed run needs to continue its curves.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from mmzoo.api import Recipe, TrainingError, did_you_mean, one_line
from mmzoo_trackers.samples import SIDE, Row, markdown_table, numbered_grid, rows_of

LOGS = "logs"  # a folder in the output, beside the checkpoints, which are removed
RUNS = "runs.json"  # of that folder: the id of the run in each tracker that has ids
PROJECT = "mmzoo"
SAMPLES = "eval/samples"
# Where the tracker's name is not that of its module and of its package on PyPI.
MODULES = {"azure_ml": "azureml", "flyte": "flytekit"}
PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}
NO_MODULE = ("kubeflow",)  # it is reached through a service


def make_trackers(recipe: Recipe) -> list[Tracker]:
    """Return the callbacks of the trackers of ``training.report_to``; in processes other than the first none, after all checks.

    Raises:
        TrainingError: a tracker is unknown, not installed or not set up.
    """
    names = list(dict.fromkeys(recipe.training.report_to))
    if names == ["all"]:
        names = integration_utils.get_available_reporting_integrations()
    trackers = [_make(name, recipe) for name in names if names != ["none"]]
    return trackers if int(os.environ.get("RANK", "0")) == 0 else []


def _make(name: str, recipe: Recipe) -> Tracker:
    known = integration_utils.INTEGRATION_TO_CALLBACK
    if name not in known:
        advice = did_you_mean(name, known, 1)
        raise TrainingError(f"training.report_to: unknown tracker '{name}'; {advice} There are: {', '.join(sorted(known))}")
    modules = ("tensorboard", "tensorboardX") if name == "tensorboard" else (MODULES.get(name, name),)
    if name not in NO_MODULE and not any(map(importlib.util.find_spec, modules)):
        package = PACKAGES.get(name, name)
        raise TrainingError(f"training.report_to: {name} is not installed; to install it: pip install {package}")
    try:
        return (TRACKERS.get(name) or type(name, (Tracker, known[name]), {"name": name}))(recipe)
    except Exception as error:  # any: it is the tracker's own code
        raise TrainingError(f"training.report_to: {name} cannot be used: {one_line(error)}") from error


class Tracker(TrainerCallback):
    """Extend a callback of `transformers.integrations`, which is the next base class.

    Class attributes:
        name: the tracker's name in ``training.report_to``.
        fix: what to do if a run cannot be started.
    """

    name: ClassVar[str] = ""
    fix: ClassVar[str] = "check its settings and its login, or leave it out of training.report_to"

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.rates: dict[str, float] = {}  # the learning rate of each part in this step

    def start(self, logs: Path, run_name: str, step: int) -> None:
        """Prepare a run whose files may be in the folder ``logs``; ``step`` is above 0 where it is resumed."""

    def log_recipe(self, recipe: dict[str, Any]) -> None:
        """Log the recipe, as a flat mapping, beside the arguments that the library's callback logs."""

    def log_samples(self, rows: list[Row], step: int) -> None:
        """Log sample predictions."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        logs = Path(args.output_dir).parent / LOGS
        try:
            with contextlib.redirect_stdout(sys.stderr):  # some print
                self.start(logs, args.run_name, state.global_step)
                super().on_train_begin(args, state, control, **more)
                self.log_recipe(flatten_recipe(self.recipe))
        except Exception as error:  # any: it is the tracker's own code
            raise TrainingError(f"training.report_to: {self.name} cannot start a run: {one_line(error)}; {self.fix}") from error

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **more: Any) -> None:
        super().on_pre_optimizer_step(args, state, control, optimizer=optimizer, **more)
        self.rates = {group["name"]: group["lr"] for group in optimizer.param_groups if "name" in group}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        super().on_log(args, state, control, logs=flatten_logs(logs or {}, self.rates), **more)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, samples: Any = (), model: Any = None, **more: Any
    ) -> None:
        scores = {name if name.startswith("eval_") else f"eval_{name}": value for name, value in (metrics or {}).items()}
        super().on_log(args, state, control, logs=scores, model=model, **more)
        if samples:
            self.log_samples(rows_of(samples, getattr(model, "module", model)), state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            super().on_train_end(args, state, control, **more)


class TensorBoard(Tracker, integration_utils.TensorBoardCallback):
    """Log to event files in OUTPUT/logs. Of a run that is resumed, steps after the checkpoint are replaced."""

    name = "tensorboard"
    fix = "free some space, or name another folder: TENSORBOARD_LOGGING_DIR"

    def start(self, logs: Path, run_name: str, step: int) -> None:
        self.logging_dir = self.logging_dir or str(logs)
        # An older run in the folder, which --overwrite replaced, is hidden from its first step on.
        self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=step + 1 if step else 0)

    def log_recipe(self, recipe: dict[str, Any]) -> None:
        self.tb_writer.add_text("recipe", "\n".join(f"    {key}: {value}" for key, value in recipe.items()))

    def log_samples(self, rows: list[Row], step: int) -> None:
        self.tb_writer.add_text(SAMPLES, markdown_table(rows), step)
        if (grid := numbered_grid(rows)) is not None:
            self.tb_writer.add_image(SAMPLES, np.asarray(grid), step, dataformats="HWC")
        self.tb_writer.flush()


class _TrackioModule:
    """Stand for the module ``trackio`` in transformers' callback, which neither passes steps nor starts a second run of a name."""

    def __init__(self, module: Any, resume: str) -> None:
        self.module, self.resume = module, resume

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def init(self, **options: Any) -> Any:
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        return self.module.init(**{**options, "project": project, "resume": self.resume})

    def log(self, metrics: dict[str, Any]) -> None:
        self.module.log(metrics, step=metrics["train/global_step"])


class Trackio(Tracker, integration_utils.TrackioCallback):
    """Log to a local database, or to a Space where ``TRACKIO_SPACE_ID`` names one. A run is resumed by its name."""

    name = "trackio"
    fix = "to log to this machine, unset TRACKIO_SPACE_ID and TRACKIO_SERVER_URL; a Space needs `hf auth login`"

    def start(self, logs: Path, run_name: str, step: int) -> None:
        import trackio

        self._trackio = _TrackioModule(trackio, "allow" if step else "never")

    def log_recipe(self, recipe: dict[str, Any]) -> None:
        self._trackio.config.update(recipe)

    def log_samples(self, rows: list[Row], step: int) -> None:
        pictures = [{"picture": self._trackio.Image(row.picture)} if row.picture else {} for row in rows]
        table = self._trackio.Table(data=[{**picture, **row.cells} for picture, row in zip(pictures, rows, strict=True)])
        self._trackio.log({SAMPLES: table, "train/global_step": step})


class WandB(Tracker, integration_utils.WandbCallback):
    """Log to Weights & Biases, or offline with ``WANDB_MODE=offline``. A run that was started before stays the user's."""

    name = "wandb"
    fix = "log in with `wandb login`, or set WANDB_MODE=offline to log to a local folder, for `wandb sync` later"
    started: ClassVar[Any] = None  # the run of this process that was started here

    def start(self, logs: Path, run_name: str, step: int) -> None:
        self.finish()  # the run of a training that failed
        if self._wandb.run is None:
            logs.mkdir(parents=True, exist_ok=True)
            options = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "name": run_name, "dir": str(logs)}
            run_id = read_run(logs, self.name) if step else None
            WandB.started = self._wandb.init(**options, id=run_id, resume="allow" if run_id else None)
            write_run(logs, self.name, WandB.started.id)

    def finish(self) -> None:
        if WandB.started is not None and self._wandb.run is WandB.started:
            self._wandb.finish()
        WandB.started = None

    def log_recipe(self, recipe: dict[str, Any]) -> None:
        self._wandb.config.update(recipe, allow_val_change=True)

    def log_samples(self, rows: list[Row], step: int) -> None:
        data = [[self._wandb.Image(row.picture) if row.picture else None, *row.cells.values()] for row in rows]
        table = self._wandb.Table(columns=["picture", *rows[0].cells], data=data)
        self._wandb.log({SAMPLES: table, "train/global_step": step})

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        super().on_train_end(args, state, control, **more)
        self.finish()


class MLflow(Tracker, integration_utils.MLflowCallback):
    """Log to MLflow, where ``MLFLOW_TRACKING_URI`` says. A run that was started before stays the user's."""

    name = "mlflow"
    fix = "set MLFLOW_TRACKING_URI to a server that can be reached, or to a file such as sqlite:///mlflow.db"
    started: ClassVar[str] = ""  # the id of the run of this process that was started here

    def start(self, logs: Path, run_name: str, step: int) -> None:
        self.finish()  # the run of a training that failed
        if self._ml_flow.active_run() is None:
            run_id = read_run(logs, self.name) if step else None
            run = self._ml_flow.start_run(run_id=run_id) if run_id else self._ml_flow.start_run(run_name=run_name)
            MLflow.started = run.info.run_id
            write_run(logs, self.name, MLflow.started)

    def finish(self) -> None:
        active = self._ml_flow.active_run()
        if MLflow.started and active is not None and active.info.run_id == MLflow.started:
            self._ml_flow.end_run()
        MLflow.started = ""

    def log_recipe(self, recipe: dict[str, Any]) -> None:
        items = list(recipe.items())
        for start in range(0, len(items), self._MAX_PARAMS_TAGS_PER_BATCH):
            self._ml_flow.log_params(dict(items[start : start + self._MAX_PARAMS_TAGS_PER_BATCH]))

    def log_samples(self, rows: list[Row], step: int) -> None:
        columns: dict[str, list[Any]] = {name: [row.cells[name] for row in rows] for name in rows[0].cells}
        if (grid := numbered_grid(rows)) is not None:
            self._ml_flow.log_image(grid, key=SAMPLES, step=step)
            blank = Image.new("RGB", (SIDE, SIDE), "white")  # each cell of a column must be a picture, or none
            columns = {"picture": [self._ml_flow.Image(row.picture or blank) for row in rows], **columns}
        self._ml_flow.log_table(columns, f"{SAMPLES}-{step}.json")

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        super().on_train_end(args, state, control, **more)
        self.finish()


TRACKERS: dict[str, type[Tracker]] = {cls.name: cls for cls in (TensorBoard, Trackio, WandB, MLflow)}


def flatten_logs(logs: Mapping[str, Any], rates: Mapping[str, float]) -> dict[str, Any]:
    """Return an entry of the training's log with the losses of terms, and the learning rates of parts, under names of their own."""
    flat = {name: value for name, value in logs.items() if name != "terms"}
    flat |= {f"losses/{term}": value for term, value in logs.get("terms", {}).items()}
    if rates and flat.pop("learning_rate", None) is not None:  # that of one of the parts
        flat |= {f"learning_rate/{part}": rate for part, rate in rates.items()}
    return flat


def flatten_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe with all its training options as a flat mapping; without folders of this machine, and long lists by length."""
    flat: dict[str, Any] = {}

    def add(key: str, value: Any) -> None:
        if isinstance(value, Mapping) and len(value) <= MAX_ITEMS:
            for name, inner in value.items():
                add(f"{key}.{name}" if key else str(name), inner)
        elif isinstance(value, Sequence | Mapping) and not isinstance(value, str):
            flat[key] = [_without_folder(item) for item in value] if len(value) <= MAX_ITEMS else f"{len(value)} items"
        else:
            flat[key] = _without_folder(value)

    add("", {**recipe.to_dict(), "training": recipe.training.model_dump(mode="json")})
    return flat


MAX_ITEMS = 100  # of a list in what is logged of a recipe: a vocabulary may have thousands


def _without_folder(value: Any) -> Any:
    """Return a value, of an absolute path (also after ``name:``) only its last part."""
    if not isinstance(value, str):
        return value
    head, colon, path = value.rpartition(":")
    local = path.startswith("~") or (Path(path).is_absolute() and not path.startswith("//"))
    return f"{head}{colon}{Path(path).name}" if local else value[:MAX_VALUE]


MAX_VALUE = 500  # characters


def read_run(logs: Path, tracker: str) -> str | None:
    """Return the id of the run in a tracker that the folder's training has; None if it has none."""
    try:
        return json.loads((logs / RUNS).read_text(encoding="utf-8")).get(tracker)
    except (OSError, ValueError):
        return None


def write_run(logs: Path, tracker: str, run_id: str) -> None:
    """Note the id of a run for `read_run`."""
    try:
        runs = json.loads((logs / RUNS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        runs = {}
    logs.mkdir(parents=True, exist_ok=True)
    (logs / RUNS).write_text(json.dumps({**runs, tracker: run_id}), encoding="utf-8")
