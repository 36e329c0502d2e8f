"""Training: a recipe and a data set to a checkpoint folder, on `transformers.Trainer`.

Ours is small: what the data decides (labels, vocabulary) is learned before the model is built, each part has its own
learning rate and policy, a checkpoint holds trained weights only, and signals stop a run where it can go on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
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

from mmzoo import checkpoint
from mmzoo.build import assemble, read_recipe
from mmzoo.data import Dataset, Example, fingerprint, image_key, load_split, open_dataset, raise_bad
from mmzoo.environment import environment
from mmzoo.errors import BadImage, BadRecipe, CheckpointError, DataError, MmzooError, TrainingError
from mmzoo.interfaces import Task
from mmzoo.model import MultimodalModel
from mmzoo.plugins import host
from mmzoo.progress import Bar, bar
from mmzoo.recipe import PARTS, Part, Recipe, TrainOptions
from mmzoo.resolve import resolve

CHECKPOINTS = "checkpoints"
RECIPE = "recipe.json"
NAMED_BAD = 10
LEARNING_SAMPLE = 100_000  # examples of a stream that labels and vocabulary are learned from


@dataclass
class Run:
    """What training gave: the trained ``model`` (in evaluation mode), the folder that it was saved in, the loss curve,
    and whether it was ``finished`` or stopped by a signal, with the checkpoint to resume from."""

    model: MultimodalModel
    output: Path
    history: list[dict[str, float]]
    steps: int
    seconds: float
    finished: bool = True
    stopped_at: Path | None = None
    signal: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


def train(
    recipe: str | Path | Recipe | None = None,
    /,
    *,
    dataset: str | Part | Dataset,
    output: str | Path,
    split: str = "train",
    resume: bool = False,
    overwrite: bool = False,
    skip_bad: bool = False,
    progress: bool = True,
    **changes: Any,
) -> Run:
    """Train a recipe on a data set and save the model in ``output``.

    Args:
        recipe: as `mmzoo.build` takes it; ``changes`` are laid over it, e.g. ``train={"epochs": 3}``.
        dataset: a name, a path, an id, or a `Dataset`.
        resume: go on from the last checkpoint in ``output``, to the numbers that an unbroken run would give.
        overwrite: replace a model or an unfinished run that is in ``output``.
        skip_bad: leave out examples whose image cannot be read, instead of stopping.

    Raises:
        UnknownName, BadRecipe, DoesNotFit: the recipe. DataError, BadImage: the data.
        TrainingError: ``output`` is taken, or there is nothing to resume. CheckpointError: it cannot be saved.
    """
    if output == "":
        raise TrainingError("the output is empty; name a folder")
    output = Path(output).expanduser()
    chosen = read_recipe(recipe, **changes)
    examples = load_split(source := open_dataset(dataset), split)
    streamed = not isinstance(examples, Sequence)
    options = chosen.train
    if streamed and options.max_steps is None:
        raise BadRecipe("train.max_steps: a streamed data set has no length; say how many steps to train")
    chosen = learn(chosen, examples, streamed=streamed)
    try:
        last = _prepare_output(output, chosen, resume=resume, overwrite=overwrite)
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be used: {error.strerror or error}") from None

    torch.manual_seed(options.seed)
    model = assemble(chosen)
    if isinstance(examples, Sequence):
        _check_examples(model.task, examples)
    fresh = not output.exists()
    if int(os.environ.get("RANK", "0")) == 0:
        _write_recipe(output, chosen)
    try:
        trainer = _trainer(model, examples, output, skip_bad=skip_bad, progress=progress)
        main = trainer.is_world_process_zero()
        started = time.monotonic()
        with trainer.stop.listening():
            trainer.train(resume_from_checkpoint=last)
        if trainer.skipped and not trainer.seen and last is None and trainer.args.world_size == 1:
            shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)  # nothing was learned that one could go on from
            raise BadImage(f"no image could be read; the first is of example {': '.join(trainer.skipped[0])}")
    except BaseException as error:
        _remove_unfinished(output, whole=fresh)
        if isinstance(error, OSError | SafetensorError):
            raise CheckpointError(f"{output}: {error}{_last_good(output)}") from None
        if isinstance(error, MmzooError) and "DataLoader worker" in str(error):
            raise _as_raised_in_worker(error) from None
        raise
    seconds = time.monotonic() - started
    model.eval()
    run = Run(model, output, _curve(trainer.state), trainer.state.global_step, seconds, skipped=trainer.skipped)
    if trainer.stop.asked:
        found = _last_checkpoint(output)
        run.finished, run.stopped_at, run.signal = False, None if found is None else Path(found), trainer.stop.asked
        return run
    model.to("cpu")
    model.provenance.run["training"] = _record(trainer, run, source, dataset, split, examples, skip_bad=skip_bad)
    if main:
        model.save(output)
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return run


def learn(recipe: Recipe, examples: Iterable[Example], *, streamed: bool = False) -> Recipe:
    """The recipe with what the data decides: the task's labels, the language model's vocabulary.

    Raises:
        DataError: there is nothing to learn from.
    """
    sample = list(islice(examples, LEARNING_SAMPLE)) if streamed else examples
    if streamed and not sample:
        raise DataError("the streamed data set is empty")
    task = resolve("task", recipe.task)
    recipe = recipe.with_part("task", **task.cls.learn(task.options, sample))
    task = resolve("task", recipe.task)
    language = resolve("language_model", recipe.language_model)
    texts = (text for example in sample for text in task.cls.texts(task.options, example))
    return recipe.with_part("language_model", **language.cls.learn(language.options, texts))


def _check_examples(task: Task, examples: Sequence[Example]) -> None:
    """Every example has a target that the task can give: said before the first step, not in the middle."""
    for example in examples:
        task.references(example)


def _prepare_output(output: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> str | None:
    """The checkpoint to resume from, None to start anew; refuses an output that holds something else."""
    folder = output / CHECKPOINTS
    if output.exists() and not output.is_dir():
        raise TrainingError(f"{output} is a file; name a folder")
    last = _last_checkpoint(output)
    if resume:
        if last is None:
            raise TrainingError(f"{output} holds no checkpoint to resume from; leave out --resume to start anew")
        saved = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        now = recipe.to_dict()
        if wrong := [key for key in sorted({*saved, *now}) if saved.get(key) != now.get(key)]:
            raise TrainingError(
                f"{output}: was started with another recipe (different: {', '.join(wrong)}); resume with the same, "
                "or start anew with --overwrite"
            )
        return last
    if (checkpoint.is_checkpoint(output) or last is not None) and not overwrite:
        what = "a model" if checkpoint.is_checkpoint(output) else "an unfinished run; --resume goes on with it"
        raise TrainingError(f"{output} already holds {what}; name another folder, or use --overwrite")
    if overwrite and int(os.environ.get("RANK", "0")) == 0:
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _write_recipe(output: Path, recipe: Recipe) -> None:
    try:
        (output / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        (output / CHECKPOINTS / RECIPE).write_text(json.dumps(recipe.to_dict(), indent=2), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be written: {error.strerror or error}") from None


def _remove_unfinished(output: Path, *, whole: bool) -> None:
    """Remove what a failed run wrote, unless it can be gone on with; ``whole``: the output folder is its own too."""
    folder = output / CHECKPOINTS
    if int(os.environ.get("RANK", "0")) or _last_checkpoint(output):
        return
    shutil.rmtree(folder, ignore_errors=True)
    if whole:
        with suppress(OSError):
            output.rmdir()


def _as_raised_in_worker(error: MmzooError) -> MmzooError:
    """The error with its own message, to which torch has added the worker's traceback."""
    kind = type(error)
    return kind(str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip())


def _last_checkpoint(output: Path) -> str | None:
    """The newest checkpoint that is complete: a process that was killed may leave half of one."""
    found = [path for path in (output / CHECKPOINTS).glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        with suppress(OSError, ValueError):
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # the last file to be written
            return str(path)
    return None


def _last_good(output: Path) -> str:
    last = _last_checkpoint(output)
    return f". The last good checkpoint is {last}; free some space, then go on with --resume" if last else ""


def _curve(state: TrainerState) -> list[dict[str, float]]:
    return [
        {"step": entry["step"], "loss": entry["loss"], "learning_rate": entry.get("learning_rate", 0.0)}
        for entry in state.log_history
        if "loss" in entry
    ]


def _record(
    trainer: _Trainer, run: Run, source: Dataset, dataset: Any, split: str, examples: Any, *, skip_bad: bool
) -> dict[str, Any]:
    """How the model was trained, for run.json and the card."""
    options = run.model.recipe.train
    name = dataset if isinstance(dataset, str) else dataset.use if isinstance(dataset, Part) else type(source).__name__
    return {
        "dataset": name,
        "split": split,
        "examples": len(examples) if isinstance(examples, Sequence) else None,
        "fingerprint": fingerprint(examples) if isinstance(examples, Sequence) else None,
        "blank_images": options.blank_images,
        "seed": options.seed,
        "steps": run.steps,
        "seconds": round(run.seconds, 1),
        "processes": trainer.args.world_size,
        "device": str(trainer.args.device),
        "precision": "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "fp32",
        "skipped": len(run.skipped) if skip_bad else 0,
        "history": run.history,
        "versions": environment(),
    }


# The trainer


def _trainer(model: MultimodalModel, examples: Any, output: Path, *, skip_bad: bool, progress: bool) -> _Trainer:
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
    callbacks = [callback for found in host().manager.hook.mmzoo_train_callbacks(recipe=model.recipe) for callback in found]
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=model.collator(training=True, blank=options.blank_images),
        callbacks=callbacks,
        skip_bad=skip_bad,
        progress=progress,
    )
    return trainer


def _precision(options: TrainOptions) -> dict[str, bool]:
    gpu = torch.cuda.is_available()
    if options.precision == "fp16" and not gpu:
        raise TrainingError("train.precision: fp16 needs a GPU; use bf16 or fp32 here")
    bf16 = options.precision == "bf16" or (options.precision == "auto" and gpu and torch.cuda.is_bf16_supported())
    return {"bf16": bf16, "fp16": options.precision == "fp16"}


class _Trainer(Trainer):
    """`transformers.Trainer` with our parameter groups, checkpoints of trained weights, and bad images counted."""

    model: Any
    args: Any

    def __init__(self, *, skip_bad: bool, progress: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = True
        self.skip_bad = skip_bad
        self.skipped: list[tuple[str, str]] = []
        self.seen = 0  # examples trained on
        self.stop = _Stop(self)
        self.add_callback(self.stop)
        for callback in self.callback_handler.callbacks[:]:
            if type(callback).__name__ == "PrinterCallback":
                self.remove_callback(callback)
        self.add_callback(_Progress(shown=progress and self.is_world_process_zero()))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        examples: Any = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(examples, IterableDataset):
            return None
        return _Shuffled(examples, self.args.seed, self.model.recipe.train.keep_images_together, self.state)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            kind, keywords = self.get_optimizer_cls_and_kwargs(self.args, None)
            self.optimizer = kind(_parameter_groups(self.model, model or self.model, self.args.weight_decay), **keywords)
        return self.optimizer

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        bad = raise_bad(inputs)
        if bad and not self.skip_bad:
            raise BadImage(f"example {bad[0][0]}: {bad[0][1]}\nTo train without such examples: --skip-bad")
        self.skipped += bad
        self.seen += len(inputs["index"]) if "index" in inputs else 0
        tensors = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
        return super().compute_loss(model, tensors, return_outputs, num_items_in_batch)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        model: MultimodalModel = self.accelerator.unwrap_model(self.model)
        state = model.state_dict() if state_dict is None else state_dict
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: state[name].detach().cpu().contiguous() for name in model.saved_names()}
        save_file(weights, folder / checkpoint.WEIGHTS, {"format": "pt"})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save reports a full disk as RuntimeError
            shutil.rmtree(folder, ignore_errors=True)
            output = Path(self.args.output_dir).parent
            text = f"the disk may be full ({error})" if isinstance(error, RuntimeError) else error
            raise CheckpointError(f"{folder}: saving failed: {text}{_last_good(output)}") from None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = load_file(Path(resume_from_checkpoint) / checkpoint.WEIGHTS)
        self.model.load_state_dict(weights, strict=False)


def _parameter_groups(model: MultimodalModel, wrapped: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
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


class _Shuffled(Sampler[int]):
    """A new order each epoch, a function of seed and epoch alone, so that a resumed run sees the same batches."""

    def __init__(self, examples: Sequence[Example], seed: int, together: bool, state: TrainerState) -> None:
        self.count, self.seed, self.state = len(examples), seed, state
        self.groups: list[list[int]] | None = None
        if together:
            found: dict[Any, list[int]] = {}
            for i, example in enumerate(examples):
                found.setdefault(image_key(example.image), []).append(i)
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


class _Stop(TrainerCallback):
    """SIGINT and SIGTERM save a checkpoint at the end of the step and stop; a second one stops at once."""

    def __init__(self, trainer: _Trainer) -> None:
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
        if self.bar is not None:
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
