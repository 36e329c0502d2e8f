"""Train a recipe on a data set with `transformers.Trainer`, and save a checkpoint folder.

What mmzoo adds: labels and vocabulary are learned from the data before the model is built, each part has its own learning rate
and training policy, a checkpoint holds trained weights only, and a signal stops a run so that it can be resumed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmzoo.checkpoints.record import skipped_record
from mmzoo.common import processes
from mmzoo.common.energy import Meter, hardware
from mmzoo.common.environment import environment
from mmzoo.data.bad import Bad, none_usable
from mmzoo.data.fingerprint import fingerprint
from mmzoo.data.mixture import Spec, Specs, open_sources
from mmzoo.errors import TrainingError
from mmzoo.interfaces import Example
from mmzoo.models.assemble import assemble
from mmzoo.models.augmentation import make_augmentations
from mmzoo.models.model import MultimodalModel
from mmzoo.models.prediction import input_error
from mmzoo.models.warm_start import inherit_options
from mmzoo.recipes.reading import read_recipe
from mmzoo.recipes.schema import Recipe
from mmzoo.training.arguments import make_trainer, plugin_callbacks
from mmzoo.training.data import check_examples, describe_sources, learn, open_examples
from mmzoo.training.evaluation_callback import check_resumed
from mmzoo.training.mixing import announce, used_sources
from mmzoo.training.optimization import check_finite
from mmzoo.training.output import last_checkpoint, prepare_output, remove_checkpoints, unfinished_output
from mmzoo.training.trainer import MultimodalTrainer
from mmzoo.training.validation_data import Validated, check_options, open_validation


@dataclass
class Run:
    """Hold the result of training."""

    model: MultimodalModel  # in evaluation mode; with shards whole in the main process, once the run is finished
    output: Path  # where it was saved
    history: list[dict[str, Any]]  # the loss curve, with the terms of each task where there are several
    steps: int
    seconds: float
    finished: bool = True  # False if a signal stopped the run
    stopped_at: Path | None = None  # the checkpoint to resume from
    signal: int = 0  # the number of the signal
    skipped: list[tuple[str, str]] = field(default_factory=list)  # id and error of each example that was skipped
    outside_labels: dict[str, list[str]] = field(default_factory=dict)  # by task, a target of each such example
    validation: dict[str, Any] | None = None  # the validation data, the metric, the best step and the history, as in run.json


def train(
    recipe: str | Path | Recipe | None = None,
    /,
    *,
    dataset: Spec | None = None,
    datasets: Sequence[Spec] | Mapping[str | None, Spec | Sequence[Spec]] | None = None,
    output: str | Path,
    split: str = "train",
    validation: Validated | None = None,
    resume: bool = False,
    overwrite: bool = False,
    skip_bad: bool = False,
    progress: bool = True,
    **changes: Any,
) -> Run:
    """Train a recipe on a data set and save the model in ``output``.

    Args:
        recipe: a recipe as `mmzoo.build` takes it; ``changes`` are merged into it, for example ``training={"epochs": 3}``.
        dataset: a name, a path, an id, a mapping with options, such as ``{"use": "easy-vqa", "limit": 100}``, or a `Dataset`;
            ``NAME:SPLIT`` names its split.
        datasets: several of them: by the task that each is for, or a list, each for every task that it has targets of. How they
            are mixed is set in the recipe, under ``data``.
        split: the split to train on, of data sets that are given without one.
        validation: what the model is validated on while it is trained, as ``training.evaluate_every`` and the options after it
            say: a split of the training data set (``"validation"``), a data set as ``dataset`` takes it, or a share of the
            training examples that is held out (``0.1``); several as a list, or by task. The weights with the best score are kept.
        resume: continue from the last checkpoint in ``output``; on a CPU it gives the same numbers as an uninterrupted run.
        overwrite: replace a model or an unfinished run in ``output``.
        skip_bad: leave out examples that cannot be used, instead of stopping: whose input, such as an image, cannot be read,
            whose text exceeds the context, or whose target is empty or none that the task can represent.

    Raises:
        UnknownName, BadRecipe, DoesNotFit: the recipe is wrong.
        DataError, BadInput: the data are wrong, or validation examples are among the training examples.
        TrainingError: ``output`` is taken, there is nothing to resume, or the loss or a weight is NaN or infinite.
        CheckpointError: the model cannot be saved.
    """
    specs: Specs = _one_of(dataset, datasets)
    if output == "":
        raise TrainingError("the output is empty; name a folder")
    output = Path(output).expanduser()
    with processes.together():  # an error is raised in all, once, and none waits for one that failed
        config = read_recipe(recipe, **changes)
        make_augmentations(config)  # its errors, before any data are read
        check_options(config, validation)
        bad: Bad | None = [] if skip_bad else None
        sources = used_sources(config.data, open_sources(config, specs))
        examples = open_examples(config, sources, split, bad)
        validated = None
        if validation is not None:
            validated, examples = open_validation(config, sources, split, examples, validation)
        config, _ = inherit_options(config)  # first, so that what a checkpoint has learned is not learned again
        config = learn(config, examples, streamed=not isinstance(examples, Sequence), skip_bad=skip_bad)
        callbacks = plugin_callbacks(config)  # before the weights are fetched, as a tracker may not be installed
        if validated is not None and config.training.metric:  # which no task may have
            validated.choose_metric(assemble(config, meta=True))
        checkpoint = prepare_output(output, config, resume=resume, overwrite=overwrite)
        torch.manual_seed(config.training.seed)
        model = assemble(config)
        examples, outside_labels = check_examples(model, examples, bad)
        if validated is not None:
            validated.prepare(model, bad)
        check_resumed(checkpoint, validated)
        if not processes.agree((config.to_dict(), checkpoint, len(examples) if isinstance(examples, Sequence) else 0)):
            raise TrainingError(
                "the processes read different data, or find different checkpoints in the output; give each machine the same copy "
                "of the data, and an output on a disk that they share"
            )
    with unfinished_output(output, config):
        how: Any = {"skip_bad": skip_bad, "progress": progress, "checkpoint": checkpoint, "validation": validated}
        with processes.together():
            trainer = make_trainer(model, examples, output, callbacks=callbacks, **how)
        facts = _train(trainer, checkpoint, progress=progress)
        skipped = _skipped(trainer, output, bad)
    model.eval()
    run = _run_of(trainer, output, facts["seconds"], skipped, outside_labels)
    if not run.finished:
        return run
    if trainer.validation:
        trainer.validation.load_best()
    model.provenance.run["training"] = {**describe_sources(sources, split), **facts, **_describe_run(run, trainer, examples)}
    run.model = _save_model(trainer, output)
    return run


def _train(trainer: MultimodalTrainer, checkpoint: str | None, *, progress: bool) -> dict[str, Any]:
    """Train until the last step or a signal, and return what it took, for run.json."""
    if (mixture := trainer.mixture()) and progress and processes.is_main():
        print(announce(mixture), file=sys.stderr)
    started = time.monotonic()
    with Meter(str(trainer.args.device)) as meter:
        cached = trainer.cache_features(checkpoint=checkpoint, progress=progress)
        with trainer.stop.signals_handled(), processes.connected():
            trainer.train(resume_from_checkpoint=checkpoint)
    return {"energy": meter.energy, "cached_features": cached, "seconds": round(time.monotonic() - started, 1)}


def _run_of(trainer: MultimodalTrainer, output: Path, seconds: float, skipped: Bad, outside_labels: dict[str, list[str]]) -> Run:
    """Return the result of a training, of which a signal may have stopped a part."""
    history = [
        {"step": entry["step"], "loss": entry["loss"], "learning_rate": entry.get("learning_rate", 0.0)}
        | ({"terms": terms} if (terms := entry.get("terms")) else {})
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    validation = trainer.validation.record() if trainer.validation else None
    last = last_checkpoint(output) if trainer.stop.signal else None
    return Run(
        trainer.model,
        output,
        history,
        trainer.state.global_step,
        seconds,
        finished=not trainer.stop.signal,
        stopped_at=Path(last) if last else None,
        signal=trainer.stop.signal,
        skipped=skipped,
        outside_labels=outside_labels,
        validation=validation,
    )


def _one_of(dataset: Spec | None, datasets: Any) -> Any:
    """Return the data sets of a run, which are given as either; raise a `TrainingError` for both or none."""
    if (dataset is None) == (datasets is None):
        raise TrainingError("name the training data: dataset=..., or several as datasets=... (--dataset, which may be repeated)")
    return dataset if datasets is None else datasets


def _describe_run(run: Run, trainer: MultimodalTrainer, examples: Iterable[Example]) -> dict[str, Any]:
    """Return how a finished run trained, for run.json."""
    options, arguments, device = trainer.model.recipe.training, trainer.args, str(trainer.args.device)
    return {
        "examples": len(examples) if isinstance(examples, Sequence) else None,
        "fingerprint": fingerprint(examples) if isinstance(examples, Sequence) else None,
        "blank_images": options.blank_images,
        "seed": options.seed,
        "steps": run.steps,
        "processes": arguments.world_size,
        "launches": trainer.launches,
        "device": device,
        "hardware": hardware(device),
        "precision": "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32",
        "skipped": len(run.skipped),
        "mixture": trainer.mixture(run.steps),
        "outside_labels": {task: len(targets) for task, targets in run.outside_labels.items()},
        "skipped_examples": skipped_record(run.skipped),
        "history": run.history,
        **({"validation": run.validation} if run.validation else {}),
        "versions": environment(),
    }


def _skipped(trainer: MultimodalTrainer, output: Path, bad: Bad | None) -> list[tuple[str, str]]:
    """Return id and error of the examples that were skipped, in all processes.

    Raises:
        DataError: every example was skipped, so that nothing was learned, and there is nothing to resume.
    """
    progress = trainer.progress()
    skipped = [*(bad or []), *progress["skipped"].values()]
    if skipped and not progress["seen"]:
        if processes.is_main():
            remove_checkpoints(output)
        raise input_error(trainer.model)(none_usable(skipped))
    return skipped


def _save_model(trainer: MultimodalTrainer, output: Path) -> MultimodalModel:
    """Save the trained model in the main process, in place of the checkpoints, while the other processes wait; return it."""
    weights, model = trainer.weights(), trainer.model
    check_finite(weights, f"step {trainer.state.global_step}", output)
    if trainer.shards is None:
        model = model.to("cpu")
    elif trainer.is_world_process_zero():
        run, model = model.provenance.run, assemble(model.recipe)
        model.load_state_dict(weights, strict=False)
        model.provenance.run = run
    if trainer.is_world_process_zero():
        model.save(output)
        remove_checkpoints(output)
    trainer.accelerator.wait_for_everyone()
    return model
