"""The loop underneath: `transformers.Trainer` with parameter groups by part, checkpoints of trained weights, bad inputs
counted, signals heard, and an order of examples that a resumed run repeats."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Sampler, get_worker_info
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from mmzoo.checkpoints.folder import CHECKPOINTS
from mmzoo.checkpoints.screening import WEIGHTS
from mmzoo.common.progress import Bar, bar
from mmzoo.data.collate import raise_bad
from mmzoo.errors import CheckpointError, TrainingError
from mmzoo.interfaces.example import Example
from mmzoo.modalities.identity import input_key
from mmzoo.models.model import MultimodalModel
from mmzoo.precompute import precompute
from mmzoo.recipes.schema import PARTS
from mmzoo.recipes.training_options import TrainingOptions
from mmzoo.registry.manager import plugin_manager

NAMED = 20  # examples that a message names


def last_checkpoint(output: Path) -> str | None:
    """The newest checkpoint that is complete: a process that was killed may leave half of one."""
    found = [path for path in (output / CHECKPOINTS).glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        with suppress(OSError, ValueError):
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # the last file to be written
            return str(path)
    return None


def last_good(output: Path, then: str = "; free some space, then go on with --resume") -> str:
    last = last_checkpoint(output)
    return f". The last good checkpoint is {last}{then}" if last else ""


def make_trainer(model: MultimodalModel, examples: Any, output: Path, *, skip_bad: bool, progress: bool) -> MultimodalTrainer:
    options = model.recipe.train
    if not any(p.requires_grad for p in model.parameters()):
        raise TrainingError("nothing is trained: every part is frozen; set train: full, last:N or lora:r on one")
    model.checkpoint_blocks(options.gradient_checkpointing)
    workers = options.workers
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0
    settings: dict[str, Any] = dict(
        output_dir=str(output / CHECKPOINTS),
        per_device_train_batch_size=options.batch_size,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup,
        lr_scheduler_type=options.schedule,
        max_grad_norm=options.max_grad_norm,
        gradient_accumulation_steps=options.accumulate,
        seed=options.seed,
        data_seed=options.seed,
        save_strategy="steps" if options.save_every else "epoch",
        save_steps=options.save_every or 500,
        save_total_limit=2,
        logging_steps=options.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=not torch.accelerator.is_available(),
        dataloader_num_workers=workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        dataloader_persistent_workers=workers > 0,
        accelerator_config={"dispatch_batches": False, "split_batches": False},
        **_precision(options),
    )
    arguments = TrainingArguments(**settings)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs go through `accelerate launch`, never DataParallel
    data = examples if isinstance(examples, Sequence) else _Stream(examples)
    callbacks = [
        callback for found in plugin_manager().manager.hook.mmzoo_train_callbacks(recipe=model.recipe) for callback in found
    ]
    trainer = MultimodalTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=model.collator(training=True, blank=options.blank_images),
        callbacks=callbacks,
        skip_bad=skip_bad,
        progress=progress,
    )
    return trainer


def _precision(options: TrainingOptions) -> dict[str, bool]:
    gpu = torch.cuda.is_available()
    if options.precision == "fp16" and not gpu:
        raise TrainingError("train.precision: fp16 needs a GPU; use bf16 or fp32 here")
    bf16 = options.precision == "bf16" or (options.precision == "auto" and gpu and torch.cuda.is_bf16_supported())
    return {"bf16": bf16, "fp16": options.precision == "fp16"}


class MultimodalTrainer(Trainer):
    """`transformers.Trainer` with our parameter groups, checkpoints of trained weights, and bad inputs counted."""

    model: Any
    args: Any

    def __init__(self, *, skip_bad: bool, progress: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = True
        self.skip_bad = skip_bad
        self.skipped: list[tuple[str, str]] = []
        self.seen = 0  # examples trained on
        self.stop = Stop(self)
        self.add_callback(self.stop)
        for callback in self.callback_handler.callbacks[:]:
            if type(callback).__name__ == "PrinterCallback":
                self.remove_callback(callback)
        self.add_callback(_Progress(shown=progress and self.is_world_process_zero()))

    def cache_features(self, *, progress: bool) -> bool:
        """Encode each input beforehand, if `TrainOptions.cache_features` says so; whether it was done."""
        steps = self.args.max_steps * self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        data: Any = self.train_dataset
        collator: Any = self.data_collator
        collator.features = precompute(
            self.model,
            data,
            self.accelerator,
            workers=self.args.dataloader_num_workers,
            reads=lambda: steps if steps > 0 else self.args.num_train_epochs * len(data),
            progress=progress,
        )
        return collator.features is not None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        examples: Any = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(examples, IterableDataset):
            return None
        together = self.model.encoder.modality if self.model.recipe.train.keep_images_together else ""
        return Shuffled(examples, self.args.seed, together, self.state)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            kind, keywords = self.get_optimizer_cls_and_kwargs(self.args, None)
            self.optimizer = kind(parameter_groups(self.model, model or self.model, self.args.weight_decay), **keywords)
        return self.optimizer

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        bad, names = raise_bad(inputs), inputs.pop("names", [])
        if bad and not self.skip_bad:
            raise self.model.encoder.reader.error(f"example {bad[0][0]}: {bad[0][1]}\nTo train without such examples: --skip-bad")
        self.skipped += bad
        self.seen += len(inputs["index"]) if "index" in inputs else 0
        tensors = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
        found = super().compute_loss(model, tensors, return_outputs, num_items_in_batch)
        loss: Any = found[0] if return_outputs else found
        if not bool(torch.isfinite(loss)):
            shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is {loss.item()}, on a batch of the examples {shown}. "
                "Lower train.learning_rate or train.max_grad_norm, or look at these examples"
                + last_good(Path(self.args.output_dir).parent, "")
            )
        return found

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        model: MultimodalModel = self.accelerator.unwrap_model(self.model)
        state = model.state_dict() if state_dict is None else state_dict
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: state[name].detach().cpu().contiguous() for name in model.saved_names()}
        check_finite(weights, f"step {self.state.global_step}", Path(self.args.output_dir).parent)
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except TrainingError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save reports a full disk as RuntimeError
            shutil.rmtree(folder, ignore_errors=True)
            output = Path(self.args.output_dir).parent
            text = f"the disk may be full ({error})" if isinstance(error, RuntimeError) else error
            raise CheckpointError(f"{folder}: saving failed: {text}{last_good(output)}") from None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        self.model.load_state_dict(weights, strict=False)


def check_finite(weights: Mapping[str, Tensor], when: str, output: Path) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        TrainingError: naming the first that is, and the last good checkpoint.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TrainingError(
                f"{when}: {name} holds NaN or infinite weights, which are not saved. Lower train.learning_rate or "
                "train.max_grad_norm" + last_good(output, "")
            )


def parameter_groups(model: MultimodalModel, wrapped: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups a part, with its own learning rate: matrices, which decay, and the rest, which does not."""
    rates = {kind: getattr(model.recipe, kind).learning_rate or model.recipe.train.learning_rate for kind in PARTS}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            kind = name.removeprefix("module.").split(".", 1)[0]
            groups.setdefault((kind, parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[kind], "weight_decay": weight_decay if decays else 0.0}
        for (kind, decays), parameters in groups.items()
    ]


class Shuffled(Sampler[int]):
    """A new order each epoch, a function of seed and epoch alone, so that a resumed run sees the same batches. The examples that
    share their inputs of the modality ``together`` stay together."""

    def __init__(self, examples: Sequence[Example], seed: int, together: str, state: TrainerState) -> None:
        self.count, self.seed, self.state = len(examples), seed, state
        self.groups: list[list[int]] | None = None
        if together:
            found: dict[Any, list[int]] = {}
            for i, example in enumerate(examples):
                found.setdefault(input_key(example.inputs(together)), []).append(i)
            self.groups = list(found.values())

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        epoch = int((self.state.epoch or 0) + 1e-6)
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        if self.groups is None:
            yield from torch.randperm(self.count, generator=generator).tolist()
        else:
            for group in torch.randperm(len(self.groups), generator=generator).tolist():
                yield from self.groups[group]


class _Stream(IterableDataset):
    """A streamed split, shared out among data workers."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self.examples = examples

    def __iter__(self) -> Iterator[Example]:
        worker = get_worker_info()
        if worker is None:
            return iter(self.examples)
        return islice(iter(self.examples), worker.id, None, worker.num_workers)


class Stop(TrainerCallback):
    """SIGINT and SIGTERM save a checkpoint at the end of the step and stop; a second one stops at once."""

    def __init__(self, trainer: MultimodalTrainer) -> None:
        self.trainer = trainer
        self.asked = 0  # the signal's number

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = number

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.world_size > 1:  # all stop at the same step, or the rest would wait for ever
            heard = torch.tensor(self.asked, device=args.device)
            self.asked = int(self.trainer.accelerator.gather(heard.unsqueeze(0)).max())
        if self.asked:
            control.should_save = control.should_training_stop = True


class _Progress(TrainerCallback):
    """A live bar with the loss."""

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self.context: Any = None
        self.bar: Bar | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.context = bar("training", state.max_steps, shown=self.shown)
        self.bar = self.context.__enter__()
        self.bar.move(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:  # what is said of a run at its end is the loss of its end
            control.should_log = True
        elif self.bar is not None:  # the last step is shown once, with its loss
            self.bar.move(state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.move(state.global_step, f"loss {float(logs['loss']):.4f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.context is not None:
            self.context.__exit__(None, None, None)
            self.context = self.bar = None
