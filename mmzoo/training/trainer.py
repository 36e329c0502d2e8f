"""Train with `transformers.Trainer`: parameter groups by part, checkpoints of trained weights, unreadable inputs counted.

Methods of `transformers.Trainer` that are overridden here, as seen in transformers 5.24:

- public: `create_optimizer`, `get_batch_samples`, `compute_loss`, `log`, `save_model`;
- private, where no public method does the same: `_get_train_sampler`, `_save_checkpoint`, `_load_from_checkpoint`.

tests/training/test_train.py (``test_every_override_of_the_trainer_is_called``) fails when the library stops calling one of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Sampler
from transformers import PrinterCallback, Trainer

from mmzoo.checkpoints.screening import WEIGHTS
from mmzoo.data.collate import TEXT, raise_bad
from mmzoo.errors import CheckpointError, TrainingError
from mmzoo.interfaces.kinds import key_of
from mmzoo.models.model import MultimodalModel, count_labels
from mmzoo.models.prediction import input_error
from mmzoo.training.callbacks import ProgressCallback, StopOnSignal
from mmzoo.training.feature_cache import precompute
from mmzoo.training.output import name_last_checkpoint
from mmzoo.training.sampling import Shuffled, grouped_modality

MAX_NAMES = 20  # examples that a message names


class MultimodalTrainer(Trainer):
    """Train a `MultimodalModel`. ``seen`` counts the examples trained on, ``skipped`` holds id and error of unreadable ones."""

    model: Any
    args: Any

    def __init__(self, *, skip_bad: bool, progress: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = True
        self.skip_bad, self.seen, self.stop, self.terms = skip_bad, 0, StopOnSignal(self), LossTerms()
        self.skipped: list[tuple[str, str]] = []
        self.add_callback(self.stop)
        self.remove_callback(PrinterCallback)
        self.add_callback(ProgressCallback(shown=progress and self.is_world_process_zero()))

    def cache_features(self, *, progress: bool) -> bool:
        """Cache the features of each input if `TrainingOptions.cache_features` allows it, and return whether it was done."""
        steps = self.args.max_steps * self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        examples: Any = self.train_dataset
        collator: Any = self.data_collator
        collator.features = precompute(
            self.model,
            examples,
            self.accelerator,
            workers=self.args.dataloader_num_workers,
            reads=lambda: steps if steps > 0 else self.args.num_train_epochs * len(examples),
            progress=progress,
        )
        return bool(collator.features)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        examples: Any = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(examples, IterableDataset):
            return None
        together = grouped_modality(self.model.modalities) if self.model.recipe.training.keep_images_together else ""
        return Shuffled(examples, self.args.seed, together, self.state)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            cls, keywords = self.get_optimizer_cls_and_kwargs(self.args, None)
            self.optimizer = cls(parameter_groups(self.model, model or self.model, self.args.weight_decay), **keywords)
        return self.optimizer

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Return the batches of a step, and by task the number of their labels in all processes.

        One batch in one process needs no number: each loss is the mean over its own labels.
        """
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(samples) == 1 and self.args.world_size == 1:
            return samples, None
        self._drop_partial_tasks(samples, device)
        names = list(self.model.tasks)
        tasks = [batch.get("tasks", {}) for batch in samples]
        counts = [sum(int(count_labels(own[name]["labels"])) for own in tasks if name in own) for name in names]
        totals = self.accelerator.reduce(torch.tensor(counts, device=device), "sum")
        return samples, dict(zip(names, totals.clamp(min=1), strict=True))

    def _drop_partial_tasks(self, samples: list[dict[str, Any]], device: torch.device) -> None:
        """Remove tasks that gather from the batches of a step in which a process has no example of them, as others would wait."""
        for name in [name for name, task in self.model.tasks.items() if task.gathers]:
            for batch in samples:
                present = torch.tensor([int(name in batch.get("tasks", {}))], device=device)
                if not int(self.accelerator.gather(present).min()):
                    remove_task(batch.get("tasks", {}), name)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each term of the loss since the last entry, if there are several."""
        if "loss" in logs:
            terms = self.terms.means(self.args.world_size)
            if len(terms) > 1 or len(self.model.tasks) > 1:
                logs = {**logs, "terms": terms}  # type: ignore[dict-item]
        super().log(logs, start_time)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Compute the loss of a batch and count its unreadable inputs.

        Raises:
            BadInput: an input cannot be read, and ``skip_bad`` is not set.
            TrainingError: the loss is NaN or infinite.
        """
        bad, names = raise_bad(inputs), inputs.pop("names", [])
        if bad and not self.skip_bad:
            name, problem = bad[0]
            raise input_error(self.model)(f"example {name}: {problem}\nTo train without such examples: --skip-bad")
        self.skipped += bad
        self.seen += len(names)
        result: Any = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss, outputs = result
        self.terms.add(outputs["terms"], self.state.global_step)
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
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        model: MultimodalModel = self.accelerator.unwrap_model(self.model)
        weights = {name: state[name].detach().cpu().contiguous() for name in model.saved_names()}
        check_finite(weights, f"step {self.state.global_step}", Path(self.args.output_dir).parent)
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

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


def remove_task(tasks: dict[str, Any], name: str) -> None:
    """Remove a task from a batch; others keep the text that they share with it."""
    removed = tasks.pop(name, {})
    for own in tasks.values():
        if own.get("text_of") == name:
            del own["text_of"]
            own |= {key: removed[key] for key in TEXT if key in removed}


class LossTerms:
    """Sum the terms of the loss between two entries of the log, on their device. A step has each term at most once: its batches,
    in all processes, have shares of it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps: dict[str, set[int]] = {}

    def add(self, terms: Mapping[str, Tensor], step: int) -> None:
        """Add the terms of a batch."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
            self.steps.setdefault(name, set()).add(step)

    def means(self, processes: int = 1) -> dict[str, float]:
        """Return the mean of each term over the steps that have it, and start anew.

        With several ``processes`` all must call this. One may lack a term, so names are gathered with the sums.
        """
        own = [({name: float(total) for name, total in self.sums.items()}, self.steps)]
        self.sums, self.steps = {}, {}
        every = gather_object(own) if processes > 1 else own
        names = dict.fromkeys(name for sums, _ in every for name in sums)
        steps = {name: set().union(*(steps.get(name, ()) for _, steps in every)) for name in names}
        return {name: sum(sums.get(name, 0.0) for sums, _ in every) / len(steps[name]) for name in names}


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
