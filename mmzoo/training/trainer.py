"""Train with `transformers.Trainer`: parameter groups by part, checkpoints of trained weights, unreadable inputs counted.

Methods of `transformers.Trainer` that are overridden here, as seen in transformers 5.24:

- public: `get_train_dataloader`, `create_optimizer`, `create_scheduler`, `get_batch_samples`, `compute_loss`, `log`,
  `save_model`;
- private, where no public method does the same: `_save_checkpoint`, `_load_from_checkpoint`.

tests/training/test_train.py (``test_every_override_of_the_trainer_is_called``) fails when the library stops calling one of them.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer

from mmzoo.checkpoints.screening import WEIGHTS
from mmzoo.data.collate import TEXT, raise_bad
from mmzoo.errors import CheckpointError, DataError, TrainingError
from mmzoo.interfaces.kinds import key_of
from mmzoo.models.model import MultimodalModel, count_labels
from mmzoo.models.prediction import input_error
from mmzoo.training.callbacks import ProgressCallback, SkipStepWithoutLoss, StopOnSignal, leave_process_group
from mmzoo.training.feature_cache import precompute
from mmzoo.training.output import name_last_checkpoint
from mmzoo.training.sampling import Randomness, Shuffled, TrainingBatches, as_it_is, grouped_modality

MAX_NAMES = 20  # examples that a message names


PROGRESS = "progress.json"  # of a checkpoint: what this module sums up
ADVICE = "\nTo train without such examples: --skip-bad"


class MultimodalTrainer(Trainer):
    """Train a `MultimodalModel`.

    Attributes:
        seen: the number of examples trained on, in this process.
        skipped: id and error of each example that was skipped, by its number, in this process.
    """

    model: Any
    args: Any

    def __init__(self, *, skip_bad: bool, progress: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = True
        self.skip_bad, self.seen, self.stop, self.losses = skip_bad, 0, StopOnSignal(self), LossSums()
        self.skipped: dict[str, tuple[str, str]] = {}
        self.step_has_loss = True
        self.add_callback(self.stop)
        self.add_callback(SkipStepWithoutLoss(self))
        self.remove_callback(PrinterCallback)
        self.add_callback(ProgressCallback(shown=progress and self.is_world_process_zero()))

    def cache_features(self, *, checkpoint: str | None, progress: bool) -> bool:
        """Cache the features of each input if `TrainingOptions.cache_features` allows it, and return whether it was done.

        A run without a cache that is resumed from a ``checkpoint`` gets none: cached features may differ in the last bits.
        """
        if checkpoint is not None and read_progress(checkpoint).get("cached") is False:
            return False
        steps = self._examples_in(self.args.max_steps)
        examples: Any = self.train_dataset
        collator: Any = self.data_collator
        with Randomness(self.args.seed).used():  # so that a run has the same random numbers where the cache is full already
            collator.features = precompute(
                self.model,
                examples,
                self.accelerator,
                workers=self.args.dataloader_num_workers,
                reads=lambda: steps if steps > 0 else self.args.num_train_epochs * len(examples),
                progress=progress,
            )
        return bool(collator.features)

    def _examples_in(self, steps: int) -> int:
        return steps * self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches of an epoch; of a stream, which is read on and on, those of the whole run.

        The loader has a generator of its own, because it would draw from the model's as often as it is started.
        """
        examples: Any = self.train_dataset
        sampler: Any
        if isinstance(examples, Sequence):
            together = grouped_modality(self.model.modalities) if self.model.recipe.training.keep_images_together else ""
            # The trainer replaces its state, so that it must be read anew.
            sampler = Shuffled(examples, self.args.seed, together, lambda: int((self.state.epoch or 0) + 1e-6))
        else:
            sampler = range(self._examples_in(self.args.max_steps))
        collator: Any = self.data_collator
        loader = DataLoader(
            TrainingBatches(examples, collator, self.args.seed, len(sampler)),
            self.args.train_batch_size,
            sampler=sampler,
            collate_fn=as_it_is,
            num_workers=self.args.dataloader_num_workers,
            persistent_workers=self.args.dataloader_persistent_workers,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),
            worker_init_fn=leave_process_group,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            cls, keywords = self.get_optimizer_cls_and_kwargs(self.args, None)
            self.optimizer = cls(parameter_groups(self.model, model or self.model, self.args.weight_decay), **keywords)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Return the schedule of `rate_at`. The library's own begins with a step of rate 0."""
        if self.lr_scheduler is None:
            warmup, schedule = self.args.get_warmup_steps(num_training_steps), str(self.args.lr_scheduler_type.value)
            rate = rate_at(schedule, warmup, num_training_steps)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, rate)  # type: ignore[arg-type]
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Return the batches of a step, and by task the number of their labels in all processes.

        One batch in one process needs no number: each loss is the mean over its own labels.
        """
        if self.state.global_step >= self.state.max_steps:  # a run that stopped at its last step, within an epoch, is resumed
            return [], None
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(samples) == 1 and self.args.world_size == 1:
            self.step_has_loss = bool(samples[0].get("tasks"))
            return samples, None
        self._drop_partial_tasks(samples, device)
        names = list(self.model.tasks)
        tasks = [batch.get("tasks", {}) for batch in samples]
        counts = [sum(int(count_labels(own[name]["labels"])) for own in tasks if name in own) for name in names]
        totals = self.accelerator.reduce(torch.tensor(counts, device=device), "sum")
        self.step_has_loss = bool(totals.any())
        return samples, dict(zip(names, totals.clamp(min=1), strict=True))

    def _drop_partial_tasks(self, samples: list[dict[str, Any]], device: torch.device) -> None:
        """Remove tasks that gather from the batches of a step in which a process has no example of them, as others would wait."""
        for name in [name for name, task in self.model.tasks.items() if task.gathers]:
            for batch in samples:
                present = torch.tensor([int(name in batch.get("tasks", {}))], device=device)
                if not int(self.accelerator.gather(present).min()):
                    remove_task(batch.get("tasks", {}), name)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the mean loss of the steps since the last entry that have one, and that of each term if there are several."""
        if "loss" in logs:
            means = self.losses.means(self.args.world_size)
            logs = {**logs, "loss": means.pop("", math.nan)}
            if math.isnan(logs["loss"]):  # every example was skipped
                del logs["loss"]
            elif len(means) > 1 or len(self.model.tasks) > 1:
                logs["terms"] = means  # type: ignore[assignment]
        super().log(logs, start_time)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Compute the loss of a batch and note the examples that were skipped.

        Raises:
            DataError: an example cannot be used, and ``skip_bad`` is not set; `BadInput` if its input cannot be read.
            TrainingError: the loss is NaN or infinite.
        """
        names = inputs.pop("names", [])
        inputs.pop("kept", None)
        numbers = inputs.pop("left_out", [])
        try:
            bad = raise_bad(inputs)
        except DataError as error:
            raise type(error)(f"{error}{ADVICE}") from None
        if bad and not self.skip_bad:
            name, problem = bad[0]
            raise input_error(self.model)(f"example {name}: {problem}{ADVICE}")
        self.skipped |= zip(numbers, bad, strict=True)
        self.seen += len(names)
        result: Any = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss, outputs = result
        if self.step_has_loss and inputs.get("tasks"):
            share = loss.detach() / self.args.world_size  # gradients are averaged over processes, so the trainer multiplies it
            self.losses.add({"": share, **outputs["terms"]}, self.state.global_step)
        if not bool(torch.isfinite(loss)):
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is {loss.item()}, on a batch of the examples "
                f"{', '.join(names[:MAX_NAMES])}{more}. Lower training.learning_rate or training.max_grad_norm, or check these "
                "examples" + name_last_checkpoint(Path(self.args.output_dir).parent, "")
            )
        return (loss, outputs) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the trained weights only.

        Raises:
            TrainingError: a weight is NaN or infinite.
        """
        state = self.accelerator.get_state_dict(self.model)  # in all processes, since sharded weights are gathered
        progress = self.progress()
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        model: MultimodalModel = self.accelerator.unwrap_model(self.model)
        weights = {name: state[name].detach().cpu().contiguous() for name in model.saved_names()}
        check_finite(weights, f"step {self.state.global_step}", Path(self.args.output_dir).parent)
        save_file(weights, folder / WEIGHTS, {"format": "pt"})
        (folder / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")

    def progress(self) -> dict[str, Any]:
        """Return what all processes have counted and summed up, as plain data; all must call this."""
        own = [(self.seen, self.skipped, self.losses.to_dict())]
        every = gather_object(own) if self.args.world_size > 1 else own
        skipped = {number: problem for _, problems, _ in every for number, problem in problems.items()}
        cached: Any = self.data_collator
        return {
            "seen": sum(seen for seen, _, _ in every),
            "skipped": skipped,
            "losses": [losses for _, _, losses in every],  # apart, so that a resumed run adds the same numbers in the same order
            "cached": bool(cached.features),
        }

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except (TrainingError, OSError, RuntimeError, SafetensorError) as error:  # torch.save: a full disk is a RuntimeError
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, TrainingError):
                raise
            output = Path(self.args.output_dir).parent
            text = f"the disk may be full ({error})" if isinstance(error, RuntimeError) else error
            raise CheckpointError(f"{folder}: saving failed: {text}{name_last_checkpoint(output)}") from None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        self.model.load_state_dict(weights, strict=False)  # frozen weights are not in it
        progress = read_progress(resume_from_checkpoint)
        if self.is_world_process_zero() and progress:  # the sums of all processes
            self.seen, self.skipped = progress["seen"], {key: tuple(each) for key, each in progress["skipped"].items()}
        losses = progress.get("losses", [])
        if len(losses) == self.args.world_size:
            losses = losses[self.args.process_index :][:1]
        elif not self.is_world_process_zero():
            losses = []
        for sums in losses:
            self.losses.update(sums)


def read_progress(checkpoint: str) -> dict[str, Any]:
    """Return `MultimodalTrainer.progress` as a checkpoint has it; nothing if it has none."""
    path = Path(checkpoint) / PROGRESS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def remove_task(tasks: dict[str, Any], name: str) -> None:
    """Remove a task from a batch; others keep the text that they share with it."""
    removed = tasks.pop(name, {})
    for own in tasks.values():
        if own.get("text_of") == name:
            del own["text_of"]
            own |= {key: removed[key] for key in TEXT if key in removed}


class LossSums:
    """Sum the loss, under the name ``""``, and its terms between two entries of the log. A step has each at most once: its
    batches, in all processes, have shares of it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # on the device of the losses
        self.steps: dict[str, set[int]] = {}

    def add(self, terms: Mapping[str, Tensor], step: int) -> None:
        """Add the terms of a batch."""
        for name, value in terms.items():
            # The sums of a checkpoint are on the CPU.
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)).to(value.device) + value
            self.steps.setdefault(name, set()).add(step)

    def to_dict(self) -> dict[str, Any]:
        """Return the sums and the steps by name, as plain data."""
        sums = {name: float(total) for name, total in self.sums.items()}
        return {"sums": sums, "steps": {name: sorted(steps) for name, steps in self.steps.items()}}

    def update(self, other: Mapping[str, Any]) -> None:
        """Add the sums and steps of another process, or of a checkpoint, from `to_dict`."""
        for name, total in other["sums"].items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + total
            self.steps.setdefault(name, set()).update(other["steps"][name])

    def means(self, processes: int = 1) -> dict[str, float]:
        """Return the mean of each term over the steps that have it, and start anew.

        With several ``processes`` all must call this. One may lack a term, so names are gathered with the sums.
        """
        own = [self.to_dict()]
        self.sums, self.steps = {}, {}
        total = LossSums()
        for other in gather_object(own) if processes > 1 else own:
            total.update(other)
        return {name: float(value) / len(total.steps[name]) for name, value in total.sums.items()}


def rate_at(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
    """Return the function from a step, counted from 0, to its learning rate as a share of the peak.

    It rises to the peak within the first ``warmup`` steps, of which the first has 1 / warmup, so that no step is without effect;
    then it follows the schedule: ``linear`` or ``cosine`` to 0, which the step after the last would have, or constant.
    """

    def rate(step: int) -> float:
        if step < warmup and schedule != "constant":
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}.get(schedule, 1.0)

    return rate


def check_finite(weights: Mapping[str, Tensor], when: str, output: Path) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        TrainingError: names the first such tensor, and the last good checkpoint.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TrainingError(
                f"{when}: {name} holds NaN or infinite weights, which are not saved. Lower training.learning_rate or "
                "training.max_grad_norm" + name_last_checkpoint(output, "")
            )


def parameter_groups(model: MultimodalModel, wrapped: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two parameter groups for each part, with the part's learning rate.

    One holds tensors of two or more dimensions, which get weight decay; the other holds the rest, such as biases.
    """
    rates = {key: part.learning_rate or model.recipe.training.learning_rate for key, part in model.recipe.parts().items()}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            key = key_of(name.removeprefix("module."))
            groups.setdefault((key, parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[key], "weight_decay": weight_decay if decays else 0.0}
        for (key, decays), parameters in groups.items()
    ]
