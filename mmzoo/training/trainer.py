"""Train with `transformers.Trainer`: parameter groups by part, checkpoints of trained weights, unreadable inputs counted.

Methods of `transformers.Trainer` that are overridden here, as seen in transformers 5.24:

- public: `create_accelerator_and_postprocess`, `get_train_dataloader`, `create_optimizer`, `create_scheduler`,
  `get_batch_samples`, `compute_loss`, `log`, `save_model`;
- private, where no public method does the same: `_save_checkpoint`, `_load_from_checkpoint`; with shards also
  `_save_optimizer_and_scheduler`, `_load_optimizer_and_scheduler`.

tests/training/test_train.py (``test_every_override_of_the_trainer_is_called``) fails when the library stops calling one of them.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
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
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from mmzoo.checkpoints.screening import WEIGHTS
from mmzoo.data.collate import raise_bad
from mmzoo.errors import CheckpointError, DataError, TrainingError
from mmzoo.models.model import count_labels
from mmzoo.models.prediction import input_error
from mmzoo.training.callbacks import ProgressCallback, SkipStepWithoutLoss, StopOnSignal, leave_process_group
from mmzoo.training.evaluation_callback import ValidationCallback
from mmzoo.training.feature_cache import precompute
from mmzoo.training.losses import LossSums
from mmzoo.training.mixing import group
from mmzoo.training.optimization import check_finite, parameter_groups, rate_at
from mmzoo.training.output import PROGRESS, name_last_checkpoint, read_progress
from mmzoo.training.processes import EvenBatches, launch, share_parts
from mmzoo.training.randomness import Randomness
from mmzoo.training.sampling import Shuffled, TrainingBatches, as_it_is, describe_mixture, grouped_modality
from mmzoo.training.sharding import Shards, shard_on_cpu
from mmzoo.training.validation import Validation

MAX_NAMES = 20  # examples that a message names


ADVICE = "\nTo train without such examples: --skip-bad"


class MultimodalTrainer(Trainer):
    """Train a `MultimodalModel`.

    Attributes:
        seen: the number of examples trained on, in this process.
        skipped: id and error of each example that was skipped, by its number, in this process.
        stream: the state from which the examples of a stream after the last batch can be read.
        launches: the processes of the run, and since which step if it was resumed on another number of them.
    """

    model: Any
    args: Any
    lr_scheduler: Any

    def __init__(self, *, skip_bad: bool, progress: bool, validation: Validation | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = True
        self.skip_bad, self.seen, self.stop, self.losses = skip_bad, 0, StopOnSignal(self), LossSums()
        self.skipped: dict[str, tuple[str, str]] = {}
        self.step_has_loss = True
        self.stream: Any = None
        self.launches = [launch(0, self.args)]
        self.shards = Shards(self.model, self.accelerator) if self.is_fsdp_enabled else None
        if self.shards is not None:
            self.add_callback(self.shards)
        self.add_callback(self.stop)
        self.add_callback(SkipStepWithoutLoss(self))
        self.remove_callback(PrinterCallback)
        shown = ProgressCallback(shown=progress and self.is_world_process_zero())
        # After `stop`, which says whether to hurry.
        self.validation = ValidationCallback(self, validation, shown) if validation is not None else None
        if self.validation is not None:
            self.add_callback(self.validation)
        self.add_callback(shown)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = self.is_fsdp_enabled or shard_on_cpu(self.accelerator)

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

    @cached_property
    def order(self) -> Any:
        """Return the sampler of an epoch; of a stream, which is read on and on, that of the whole run.

        Raises:
            BadRecipe, DataError: the examples cannot be drawn as the recipe says.
        """
        examples: Any = self.train_dataset
        if not isinstance(examples, Sequence):
            return range(self._examples_in(self.args.max_steps))
        together = grouped_modality(self.model.modalities) if self.model.recipe.training.keep_images_together else ""
        groups = group(self.model.recipe, examples)
        # The trainer replaces its state, so that it must be read anew.
        return Shuffled(examples, self.args.seed, together, lambda: int((self.state.epoch or 0) + 1e-6), groups)

    def mixture(self, steps: int | None = None) -> dict[str, Any]:
        """Return the record of the mixture after so many steps, or after the whole run; see `describe_mixture`."""
        if not isinstance(self.train_dataset, Sequence):
            more = self._examples_in(self.args.max_steps if steps is None else steps)
            return describe_mixture(self.model.recipe, self.train_dataset, self.order, 0, more)
        count, each = len(self.order), self._examples_in(1)
        an_epoch = math.ceil(count / each)
        if steps is None:
            steps = self.args.max_steps if self.args.max_steps > 0 else math.ceil(self.args.num_train_epochs * an_epoch)
        epochs, rest = divmod(steps, an_epoch)
        return describe_mixture(self.model.recipe, self.train_dataset, self.order, epochs, min(count, rest * each))

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches of `order`.

        The loader has a generator of its own, because it would draw from the model's as often as it is started.
        """
        collator: Any = self.data_collator
        sampler, options = self.order, self.model.recipe.data
        loader = DataLoader(
            TrainingBatches(self.train_dataset, collator, self.args.seed, len(sampler), options, self.stream),  # type: ignore[arg-type]
            batch_sampler=EvenBatches(sampler, self.args.train_batch_size, self.args.world_size),
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
        # A run that stopped at its last step, within an epoch, is resumed; or its patience ended before.
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            return [], None
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(samples) == 1 and self.args.world_size == 1:
            self.step_has_loss = bool(samples[0].get("tasks"))
            return samples, None
        if self.args.world_size > 1:
            ran = share_parts(samples, self.model, self.accelerator, sharded=self.shards is not None)
            if self.shards is not None:
                self.shards.ran = ran
        names = list(self.model.tasks)
        tasks = [batch.get("tasks", {}) for batch in samples]
        counts = [sum(int(count_labels(own[name]["labels"])) for own in tasks if name in own) for name in names]
        totals = self.accelerator.reduce(torch.tensor(counts, device=device), "sum")
        self.step_has_loss = bool(totals.any())
        return samples, dict(zip(names, totals.clamp(min=1), strict=True))

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
        self.stream = inputs.pop("stream", None)
        try:
            bad = raise_bad(inputs)
        except DataError as error:
            raise type(error)(f"{error}{ADVICE}") from None
        if bad and not self.skip_bad:
            name, problem = bad[0]
            raise input_error(self.model)(f"example {name}: {problem}{ADVICE}")
        self.skipped |= zip(numbers, bad, strict=True)
        self.seen += len(names)
        # accelerate leaves the precision to the shards, which are float32.
        with self.accelerator.autocast() if self.shards else nullcontext():
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
        weights, progress = self.weights(), self.progress()
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.write_weights(weights, folder)
        (folder / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")

    def weights(self) -> dict[str, Tensor]:
        """Return the weights to save, whole; all processes must call this."""
        state, names = self.model.state_dict(), self.model.saved_names()
        return {name: self.shards.whole(name, state[name]) if self.shards else state[name].detach() for name in names}

    def write_weights(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Write weights into a folder.

        Raises:
            TrainingError: one is NaN or infinite.
        """
        check_finite(weights, f"step {self.state.global_step}", Path(self.args.output_dir).parent)
        save_file({name: value.cpu().contiguous() for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})

    def load_weights(self, folder: Path) -> None:
        """Load the weights that `write_weights` wrote. Frozen ones are not in it."""
        load: Any = partial(self.model.load_state_dict, strict=False) if self.shards is None else self.shards.load
        load(load_file(folder / WEIGHTS))

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
            "stream": self.stream,
            **({"validation": self.validation.state()} if self.validation else {}),
            "launches": self.launches,
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
        self.load_weights(Path(resume_from_checkpoint))
        progress = read_progress(resume_from_checkpoint)
        if self.validation is not None:
            self.validation.load_state(progress["validation"])
        if launches := progress.get("launches"):
            own = launch(int(resume_from_checkpoint.rpartition("-")[2]), self.args)
            self.launches = launches if launches[-1]["processes"] == own["processes"] else [*launches, own]
        if self.is_world_process_zero() and progress:  # the sums of all processes
            self.seen, self.skipped = progress["seen"], {key: tuple(each) for key, each in progress["skipped"].items()}
        losses = progress.get("losses", [])
        if len(losses) == self.args.world_size:
            losses = losses[self.args.process_index :][:1]
        elif not self.is_world_process_zero():
            losses = []
        for sums in losses:
            self.losses.update(sums)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.shards is None:
            return super()._save_optimizer_and_scheduler(output_dir)
        state = self.shards.state_of(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.shards is None or checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        state, schedule = (
            torch.load(Path(checkpoint) / name, "cpu", weights_only=True) for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        self.shards.load_state(self.optimizer, state)
        self.lr_scheduler.load_state_dict(schedule)
