"""Training: a recipe and a data set to a checkpoint folder, on `transformers.Trainer`.

Ours is small: what the data decides (labels, vocabulary) is learned before the model is built, each part has its own
learning rate and policy, a checkpoint holds trained weights only, and signals stop a run where it can go on.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainerState

from mmzoo.checkpoints.folder import CHECKPOINTS, is_checkpoint
from mmzoo.common.energy import Meter, hardware
from mmzoo.common.environment import environment
from mmzoo.data import provenance
from mmzoo.data.dataset import Dataset
from mmzoo.data.fingerprint import fingerprint
from mmzoo.data.open import load_split, open_dataset
from mmzoo.errors import BadRecipe, CheckpointError, DataError, MmzooError, TrainingError
from mmzoo.interfaces.example import Example
from mmzoo.interfaces.task import Task
from mmzoo.models.assemble import assemble
from mmzoo.models.compatibility import check_data
from mmzoo.models.model import MultimodalModel
from mmzoo.models.warm_start import inherit_options
from mmzoo.recipes.reading import read_recipe
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig, Recipe
from mmzoo.training.arguments import make_trainer
from mmzoo.training.output import last_checkpoint, last_good
from mmzoo.training.trainer import MultimodalTrainer, check_finite

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
    dataset: str | PartConfig | Dataset,
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
        recipe: as `mmzoo.build` takes it; ``changes`` are laid over it, e.g. ``training={"epochs": 3}``.
        dataset: a name, a path, an id, or a `Dataset`.
        resume: go on from the last checkpoint in ``output``, to the numbers that an unbroken run would give.
        overwrite: replace a model or an unfinished run that is in ``output``.
        skip_bad: leave out examples whose input, such as an image, cannot be read, instead of stopping.

    Raises:
        UnknownName, BadRecipe, DoesNotFit: the recipe. DataError, BadInput: the data.
        TrainingError: ``output`` is taken, or there is nothing to resume. CheckpointError: it cannot be saved.
    """
    if output == "":
        raise TrainingError("the output is empty; name a folder")
    output = Path(output).expanduser()
    chosen = read_recipe(recipe, **changes)
    examples = load_split(source := open_dataset(dataset), split)
    streamed = not isinstance(examples, Sequence)
    options = chosen.training
    if streamed and options.max_steps is None:
        raise BadRecipe("training.max_steps: a streamed data set has no length; say how many steps to train")
    first = examples[0] if isinstance(examples, Sequence) else next(iter(examples), None)
    check_data(chosen, first, dataset if isinstance(dataset, str) else type(source).__name__)
    chosen, _ = inherit_options(chosen)  # what a checkpoint has learned is not learned anew
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
        trainer = make_trainer(model, examples, output, skip_bad=skip_bad, progress=progress)
        main = trainer.is_world_process_zero()
        started = time.monotonic()
        with Meter(str(trainer.args.device)) as meter:
            cached = trainer.cache_features(progress=progress)
            with trainer.stop.listening():
                trainer.train(resume_from_checkpoint=last)
        if trainer.skipped and not trainer.seen and last is None and trainer.args.world_size == 1:
            shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)  # nothing was learned that one could go on from
            first_bad = ": ".join(trainer.skipped[0])
            raise model.encoder.reader.error(f"no {model.encoder.modality} could be read; the first is of example {first_bad}")
    except BaseException as error:
        _remove_unfinished(output, whole=fresh)
        if isinstance(error, OSError | SafetensorError):
            raise CheckpointError(f"{output}: {error}{last_good(output)}") from None
        if isinstance(error, MmzooError) and "DataLoader worker" in str(error):
            raise _as_raised_in_worker(error) from None
        raise
    seconds = time.monotonic() - started
    model.eval()
    run = Run(model, output, _curve(trainer.state), trainer.state.global_step, seconds, skipped=trainer.skipped)
    if trainer.stop.asked:
        found = last_checkpoint(output)
        run.finished, run.stopped_at, run.signal = False, None if found is None else Path(found), trainer.stop.asked
        return run
    model.to("cpu")
    state = model.state_dict()
    check_finite({name: state[name] for name in model.saved_names()}, f"step {run.steps}", output)
    said = _record(trainer, run, dataset, split, examples, skip_bad=skip_bad)
    model.provenance.run["training"] = {**said, "energy": meter.energy, "cached_features": cached}
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
    last = last_checkpoint(output)
    if resume:
        if last is None and is_checkpoint(output):
            raise TrainingError(f"{output} holds a finished model, and nothing to resume; --overwrite trains it anew")
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
    if (is_checkpoint(output) or last is not None) and not overwrite:
        what = "a model" if is_checkpoint(output) else "an unfinished run; --resume goes on with it"
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
    if int(os.environ.get("RANK", "0")) or last_checkpoint(output):
        return
    shutil.rmtree(folder, ignore_errors=True)
    if whole:
        with suppress(OSError):
            output.rmdir()


def _as_raised_in_worker(error: MmzooError) -> MmzooError:
    """The error with its own message, to which torch has added the worker's traceback."""
    kind = type(error)
    return kind(str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip())


def _curve(state: TrainerState) -> list[dict[str, float]]:
    return [
        {"step": entry["step"], "loss": entry["loss"], "learning_rate": entry.get("learning_rate", 0.0)}
        for entry in state.log_history
        if "loss" in entry
    ]


def _record(
    trainer: MultimodalTrainer, run: Run, dataset: str | PartConfig | Dataset, split: str, examples: Any, *, skip_bad: bool
) -> dict[str, Any]:
    """How the model was trained, for run.json and the card."""
    options = run.model.recipe.training
    device = str(trainer.args.device)
    return {
        **provenance.describe(dataset),
        "split": split,
        "examples": len(examples) if isinstance(examples, Sequence) else None,
        "fingerprint": fingerprint(examples) if isinstance(examples, Sequence) else None,
        "blank_images": options.blank_images,
        "seed": options.seed,
        "steps": run.steps,
        "seconds": round(run.seconds, 1),
        "processes": trainer.args.world_size,
        "device": device,
        "hardware": hardware(device),
        "precision": "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "fp32",
        "skipped": len(run.skipped) if skip_bad else 0,
        "history": run.history,
        "versions": environment(),
    }
