"""Validate while training: score the model, keep the best weights, and stop when no score gets better.

What is best, and when patience ends, follow from the history of scores, which each checkpoint holds. So a run that is killed at
any moment and resumed decides as an unbroken one. The weights of the best step are in ``checkpoints/best-STEP``; those that the
last checkpoint counts on are kept until the next checkpoint is written.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, broadcast_object_list
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmzoo.common.files import STAGING, staged_folder
from mmzoo.data.open import for_task
from mmzoo.errors import CheckpointError, DataError, TrainingError
from mmzoo.models.model import MultimodalModel
from mmzoo.training.callbacks import ProgressCallback
from mmzoo.training.output import name_last_checkpoint, read_progress
from mmzoo.training.randomness import Randomness
from mmzoo.training.validation import Validation

BEST = "best"  # the beginning of the names of folders with the best weights, and of their description
MAX_SAMPLES = 20  # examples whose predictions other callbacks get


class ValidationCallback(TrainerCallback):
    """Validate every ``training.evaluate_every`` steps, or after each epoch, and after the last step.

    Attributes:
        history: step and scores of each validation.
    """

    def __init__(self, trainer: Any, validation: Validation, shown: ProgressCallback) -> None:
        self.trainer, self.validation, self.shown = trainer, validation, shown
        self.history: list[dict[str, Any]] = []
        self.kept: set[int] = set()  # steps whose weights the last checkpoint counts on
        self.options = trainer.model.recipe.training

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {"fingerprint": self.validation.record["fingerprint"], "history": self.history}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: the best weights are missing.
        """
        self.history = list(state["history"])
        best = self.best
        if best is not None and not self._folder(best["step"]).is_dir():
            folder = self._folder(best["step"])
            raise CheckpointError(f"{folder}: the weights of the best step are missing; start a new run with --overwrite")
        self.kept = {best["step"]} if best else set()
        if self.trainer.is_world_process_zero():
            self._remove_others()

    @property
    def best(self) -> dict[str, Any] | None:
        """Return ``step`` and ``score`` of the best validation; None if no score was a number."""
        return best_of(self.history, self.validation.metric, smaller=self.validation.smaller_is_better)

    def record(self) -> dict[str, Any]:
        """Return the validation for run.json."""
        return {
            **self.validation.record,
            "metric": self.validation.metric,
            "best": self.best,
            "stopped_early": self._patience_ended() and self.trainer.state.global_step < self.trainer.state.max_steps,
            "history": describe(self.history),
        }

    def load_best(self) -> None:
        """Load the best weights into the model, in all processes."""
        best = self.best
        self.trainer.accelerator.wait_for_everyone()  # the main process writes them
        if best is not None and best["step"] != self.trainer.state.global_step:
            try:
                self.trainer.load_weights(self._folder(best["step"]))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{self._folder(best['step'])}: the best weights cannot be read: {error}") from None

    # Events

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step and self._is_due(state, control):  # a signal stopped the run in place of this validation
            self._validate(args, state, control)
        if self._patience_ended():
            control.should_training_stop = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.trainer.stop.signal or not self._is_due(state, control):
            return
        self._validate(args, state, control)
        if self._patience_ended():
            control.should_training_stop = control.should_log = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.kept = {self.best["step"]} if self.best else set()
        if state.is_world_process_zero:
            self._remove_others()

    def _is_due(self, state: TrainerState, control: TrainerControl) -> bool:
        if self.history and self.history[-1]["step"] == state.global_step:
            return False
        if state.global_step >= state.max_steps or control.should_training_stop:
            return True
        if self.options.evaluate_every:
            return state.global_step % self.options.evaluate_every == 0
        return abs((state.epoch or 0) - round(state.epoch or 0)) < 1e-6

    def _patience_ended(self) -> bool:
        if self.options.patience is None:
            return False
        best = self.best
        since = [entry for entry in self.history if best is None or entry["step"] > best["step"]]
        return len(since) >= self.options.patience

    # Validating

    def _validate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Add the scores of this step to the history, keep its weights if they are the best, and tell the other callbacks."""
        model: MultimodalModel = self.trainer.model
        step, count, done = state.global_step, sum(len(examples) for _, examples in self.validation.parts), 0

        def advance(number: int) -> None:
            nonlocal done
            done += number
            self.shown.validating(step, done, count)

        if args.world_size > 1:  # statistics of batch norms are of a process; those of the main one are saved
            broadcast([buffer for buffer in model.buffers() if buffer.is_floating_point()])
        with ExitStack() as stack:  # training goes on with the random numbers that it would have without
            stack.enter_context(Randomness(self.options.seed, "validation").used())
            stack.enter_context(torch.random.fork_rng([model.device] if model.device.type == "cuda" else []))
            try:
                scores, predictions = self.validation.score(model, advance)
            except DataError as error:
                last = name_last_checkpoint(Path(str(args.output_dir)).parent, "")
                raise type(error)(
                    f"validation at step {step}: {error}\nTo validate without such examples: --skip-bad{last}"
                ) from None
        if args.world_size > 1:  # all processes must decide alike, and devices may round differently
            scores = broadcast_object_list([scores])[0]
        before = self.best
        self.history.append({"step": step, "scores": scores})
        if (best := self.best) is not None and best != before:
            self._keep_weights(best)
        samples = self._samples(model, predictions)
        told = {"metrics": scores, "samples": samples, "score": scores[self.validation.metric], "best": best}
        self.trainer.callback_handler.call_event("on_evaluate", args, state, control, **told)

    def _samples(self, model: MultimodalModel, predictions: list[list[Any]]) -> list[dict[str, Any]]:
        """Return evenly spread examples with their predictions, at most `MAX_SAMPLES`."""
        rows, several = [], len(model.tasks) > 1
        pairs = [(task, part) for part, (tasks, _) in enumerate(self.validation.parts) for task in tasks]
        share = max(1, MAX_SAMPLES // len(pairs))
        for task, part in pairs[:MAX_SAMPLES]:
            examples = self.validation.parts[part][1]
            for i in range(0, len(examples), max(1, -(-len(examples) // share))):
                example = for_task(model.recipe, task, examples[i])
                prediction = predictions[part][i][task] if several else predictions[part][i]
                if example.targets:
                    row = {"id": example.id, "task": task, "text": example.text, "targets": list(example.targets)}
                    rows.append({**row, "prediction": prediction.text, "inputs": dict(example.inputs)})
        return rows

    # The best weights

    def _folder(self, step: int) -> Path:
        return Path(self.trainer.args.output_dir) / f"{BEST}-{step}"

    def _keep_weights(self, best: Mapping[str, Any]) -> None:
        """Write the weights of this step, whole or not at all; the main process does.

        Raises:
            TrainingError: a weight is NaN or infinite. CheckpointError: they cannot be written.
        """
        weights = self.trainer.weights()
        if not self.trainer.is_world_process_zero():
            return
        folder, facts = self._folder(best["step"]), {**best, "metric": self.validation.metric}
        try:
            with staged_folder(folder) as staged:
                self.trainer.write_weights(weights, staged)
                (staged / f"{BEST}.json").write_text(json.dumps(facts), encoding="utf-8")
                shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed after this step
                staged.rename(folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            output = Path(self.trainer.args.output_dir).parent
            raise CheckpointError(f"{folder}: saving the best weights failed: {error}{name_last_checkpoint(output)}") from None
        self._remove_others()

    def _remove_others(self) -> None:
        """Remove weights that neither the history nor the last checkpoint counts on, and what a killed run left half-written."""
        used = {self._folder(step) for step in (*self.kept, *([self.best["step"]] if self.best else []))}
        folders = Path(self.trainer.args.output_dir)
        for folder in [*folders.glob(f"{BEST}-*"), *folders.glob(f"{STAGING}*")]:
            if folder not in used:
                shutil.rmtree(folder, ignore_errors=True)


def best_of(history: Sequence[Mapping[str, Any]], metric: str, *, smaller: bool) -> dict[str, Any] | None:
    """Return ``step`` and ``score`` of the best entry, the first of equals; None if no score is a number."""
    best: dict[str, Any] | None = None
    for entry in history:
        score = entry["scores"][metric]
        if not math.isfinite(score):
            continue
        if best is None or (score < best["score"] if smaller else score > best["score"]):
            best = {"step": entry["step"], "score": score}
    return best


def describe(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a history for run.json, which has no NaN."""
    return [
        {"step": entry["step"], "scores": {name: s if math.isfinite(s) else None for name, s in entry["scores"].items()}}
        for entry in history
    ]


def check_resumed(checkpoint: str | None, validation: Validation | None) -> None:
    """Check that a run is resumed, from ``checkpoint`` if it is not None, with the validation data that it was started with.

    Raises:
        TrainingError: the data differ.
    """
    if checkpoint is None:
        return
    before = (read_progress(checkpoint).get("validation") or {}).get("fingerprint")
    if before != (validation.record["fingerprint"] if validation else None):
        had = "without validation data" if before is None else "with other validation data"
        raise TrainingError(f"the run was started {had}; resume with the same --validation, or start a new run with --overwrite")
