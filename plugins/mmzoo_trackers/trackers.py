"""Say what each tracker needs beside its callback in transformers, and make those that ``training.report_to`` names."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from transformers.integrations import integration_utils

from mmzoo.api import Recipe, TrainingError, did_you_mean, one_line
from mmzoo_trackers.samples import SIDE, Row, markdown_table, numbered_grid
from mmzoo_trackers.tracker import Tracker

RUNS = "runs.json"  # of the folder of logs: the id of the run in each tracker that has ids
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
        advice = f"{did_you_mean(name, known, 1)} There are: {', '.join(sorted(known))}".strip()
        raise TrainingError(f"training.report_to: unknown tracker '{name}'; {advice}")
    modules = ("tensorboard", "tensorboardX") if name == "tensorboard" else (MODULES.get(name, name),)
    if name not in NO_MODULE and not any(map(importlib.util.find_spec, modules)):
        package = PACKAGES.get(name, name)
        raise TrainingError(f"training.report_to: {name} is not installed; to install it: pip install {package}")
    try:
        return (TRACKERS.get(name) or type(name, (Tracker, known[name]), {"name": name}))(recipe)
    except Exception as error:  # any: it is the tracker's own code
        raise TrainingError(f"training.report_to: {name} cannot be used: {one_line(error)}") from error


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
    """Stand for ``trackio`` in transformers' callback, which neither passes steps nor starts a second run of a name."""

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
            options = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "name": run_name}
            run_id = read_run(logs, self.name) if step else None
            options["dir"] = os.environ.get("WANDB_DIR", str(logs))
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
