"""Define `Tracker`, which adds to a callback of `transformers.integrations` what a training of mmzoo has to log."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import TrainerCallback

from mmzoo.api import Recipe, TrainingError, one_line
from mmzoo_trackers.samples import Row, rows_of

LOGS = "logs"  # a folder in the output, beside the checkpoints, which are removed
MAX_ITEMS = 100  # of a list in what is logged of a recipe: a vocabulary may have thousands
MAX_VALUE = 500  # characters


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
        new = not logs.exists()
        try:
            with contextlib.redirect_stdout(sys.stderr):  # some print
                self.start(logs, args.run_name, state.global_step)
                super().on_train_begin(args, state, control, **more)
                self.log_recipe(flatten_recipe(self.recipe))
        except Exception as error:  # any: it is the tracker's own code
            if new:
                shutil.rmtree(logs, ignore_errors=True)
            reason = one_line(error).rstrip(".")
            raise TrainingError(f"training.report_to: {self.name} cannot start a run: {reason}; {self.fix}") from error

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


def flatten_logs(logs: Mapping[str, Any], rates: Mapping[str, float]) -> dict[str, Any]:
    """Return an entry of the training's log with each term of the loss, and each part's learning rate, under its own name."""
    flat = {name: value for name, value in logs.items() if name != "terms"}
    flat |= {f"losses/{term}": value for term, value in logs.get("terms", {}).items()}
    if rates and flat.pop("learning_rate", None) is not None:  # that of one of the parts
        flat |= {f"learning_rate/{part}": rate for part, rate in rates.items()}
    return flat


def flatten_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe and all its training options as a flat mapping, without folders of this machine; long lists by length."""
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


def _without_folder(value: Any) -> Any:
    """Return a value, of an absolute path (also after ``name:``) only its last part."""
    if not isinstance(value, str):
        return value
    head, colon, path = value.rpartition(":")
    local = path.startswith("~") or (Path(path).is_absolute() and not path.startswith("//"))
    return f"{head}{colon}{Path(path).name}" if local else value[:MAX_VALUE]
