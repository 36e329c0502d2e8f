"""Train a recipe on a data set with `transformers.Trainer`, and save a checkpoint folder.

What mmzoo adds: labels and vocabulary are learned from the data before the model is built, each part has its own learning rate
and training policy, a checkpoint holds trained weights only, and a signal stops a run so that it can be resumed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mmzoo.checkpoints.record import skipped_record
from mmzoo.common.energy import Meter, hardware
from mmzoo.common.environment import environment
from mmzoo.data import provenance
from mmzoo.data.bad import Bad, none_usable, readable, without_bad
from mmzoo.data.dataset import Dataset
from mmzoo.data.fingerprint import fingerprint
from mmzoo.data.open import for_task, load_split, no_target, open_for, takes_default, target_of
from mmzoo.data.tokens import check_marks
from mmzoo.errors import BadRecipe, DataError, DoesNotFit, TrainingError
from mmzoo.evaluation.scoring import describe_outside_labels, references_of
from mmzoo.interfaces import Example
from mmzoo.modalities.reader import plural
from mmzoo.models.assemble import assemble
from mmzoo.models.compatibility import check_data
from mmzoo.models.model import MultimodalModel
from mmzoo.models.prediction import input_error
from mmzoo.models.warm_start import inherit_options
from mmzoo.recipes.reading import read_recipe
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig, Recipe
from mmzoo.training.arguments import make_trainer
from mmzoo.training.output import is_main_process, last_checkpoint, prepare_output, remove_checkpoints, unfinished_output
from mmzoo.training.trainer import MultimodalTrainer, check_finite

LEARNING_SAMPLE = 100_000  # examples of a stream that labels and vocabulary are learned from


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
        recipe: a recipe as `mmzoo.build` takes it; ``changes`` are merged into it, for example ``training={"epochs": 3}``.
        dataset: a name, a path, an id, or a `Dataset`.
        resume: continue from the last checkpoint in ``output``; on a CPU it gives the same numbers as an uninterrupted run.
        overwrite: replace a model or an unfinished run in ``output``.
        skip_bad: leave out examples that cannot be used, instead of stopping: whose input, such as an image, cannot be read,
            whose text exceeds the context, or whose target is empty or none that the task can represent.

    Raises:
        UnknownName, BadRecipe, DoesNotFit: the recipe is wrong.
        DataError, BadInput: the data are wrong.
        TrainingError: ``output`` is taken, there is nothing to resume, or the loss or a weight is NaN or infinite.
        CheckpointError: the model cannot be saved.
    """
    if output == "":
        raise TrainingError("the output is empty; name a folder")
    output = Path(output).expanduser()
    config = read_recipe(recipe, **changes)
    bad: Bad | None = [] if skip_bad else None
    examples = _open_examples(config, dataset, split, bad)
    config, _ = inherit_options(config)  # first, so that what a checkpoint has learned is not learned again
    config = learn(config, examples, streamed=not isinstance(examples, Sequence), skip_bad=skip_bad)
    checkpoint = prepare_output(output, config, resume=resume, overwrite=overwrite)
    torch.manual_seed(config.training.seed)
    model = assemble(config)
    outside_labels: dict[str, list[str]] = {}
    if isinstance(examples, Sequence):
        examples, outside_labels = _check_examples(model, examples, bad)
    with unfinished_output(output, config):
        trainer = make_trainer(model, examples, output, skip_bad=skip_bad, progress=progress, checkpoint=checkpoint)
        started = time.monotonic()
        with Meter(str(trainer.args.device)) as meter:
            cached = trainer.cache_features(checkpoint=checkpoint, progress=progress)
            with trainer.stop.signals_handled():
                trainer.train(resume_from_checkpoint=checkpoint)
        skipped = _skipped(trainer, output, bad)
        seconds = time.monotonic() - started
    model.eval()
    history = [
        {"step": entry["step"], "loss": entry["loss"], "learning_rate": entry.get("learning_rate", 0.0)}
        | ({"terms": terms} if (terms := entry.get("terms")) else {})
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    run = Run(model, output, history, trainer.state.global_step, seconds, skipped=skipped, outside_labels=outside_labels)
    if trainer.stop.signal:
        last = last_checkpoint(output)
        run.finished, run.stopped_at, run.signal = False, Path(last) if last else None, trainer.stop.signal
        return run
    data = {**provenance.describe(dataset), "split": split, "energy": meter.energy, "cached_features": cached}
    model.provenance.run["training"] = {**data, **_describe_run(run, trainer, examples)}
    run.model = _save_model(trainer, output)
    return run


def learn(recipe: Recipe, examples: Iterable[Example], *, streamed: bool = False, skip_bad: bool = False) -> Recipe:
    """Return the recipe with what the data decide: the task's labels and the language model's vocabulary.

    An example that a task refuses is an error; with ``skip_bad`` it is left out here, and noted when it is checked or trained on.

    Raises:
        DataError: there is nothing to learn from.
    """
    sample = list(islice(_stream(examples, skip_bad), LEARNING_SAMPLE)) if streamed else examples
    if streamed and not sample:
        raise DataError("the streamed data set is empty")
    if len(recipe.tasks) > 1 or skip_bad:  # read once, since a data set may make its inputs when they are read
        sample = [replace(example, inputs={}) for example in sample]
    texts: list[str] = []
    for name in recipe.tasks:
        own = _OfTask(sample, target_of(recipe, name), default=takes_default(recipe, name))
        if next(iter(own), None) is None:
            raise no_target(recipe, name, sample)
        task = resolve("task", recipe.tasks[name])
        recipe = recipe.with_part(f"tasks.{name}", **_learn_task(task, own, skip_bad))
        learned = resolve("task", recipe.tasks[name])
        texts += [text for example in own for text in learned.cls.texts(learned.options, example)]
    language = resolve("language_model", recipe.language_model)
    return recipe.with_part("language_model", **language.cls.learn(language.options, texts))


def _learn_task(task: Any, own: _OfTask, skip_bad: bool) -> dict[str, Any]:
    """Return what a task learns from examples; with ``skip_bad`` without those at which it raises an error."""
    while True:
        try:
            return task.cls.learn(task.options, own)
        except DataError:
            if not skip_bad or own.last is None:  # it read all of them
                raise
            own.examples = [example for example in own.examples if example is not own.last]


def _stream(examples: Iterable[Example], skip_bad: bool) -> Iterator[Example]:
    """Yield the examples of a stream; with ``skip_bad`` those that can be read."""
    return (row for row in readable(iter(examples), skip_bad=skip_bad) if isinstance(row, Example))


@dataclass
class _OfTask:
    """Iterate over examples with the targets of one task; over those that have one, unless it takes the ``default``. ``last`` is
    the example that was given last; None at the end."""

    examples: Iterable[Example]
    target: str
    default: bool
    last: Example | None = None

    def __iter__(self) -> Iterator[Example]:
        for example in self.examples:
            own = example.for_task(self.target, default=self.default)
            if own.targets or self.default:
                self.last = example
                yield own
        self.last = None


def _check_examples(
    model: MultimodalModel, examples: Sequence[Example], bad: Bad | None
) -> tuple[Sequence[Example], dict[str, list[str]]]:
    """Check, before the first step, that the tasks can represent the targets, and that each encoder has an input at all.

    Returns:
        The examples; with ``bad`` without those that cannot be used. By task a target of each example that has one outside the
        label set, which the loss leaves out.

    Raises:
        DataError: a target that its task cannot represent, or none is in a label set.
        DoesNotFit: no example has an input of an encoder.
    """
    absent = {encoder.modality for encoder in model.encoders.values() if encoder.transform is not None}
    outside_labels: dict[str, list[str]] = {}
    trained: set[str] = set()  # the tasks that have a target of their label set

    def check(example: Example) -> None:
        nonlocal absent
        check_marks(example, model.modalities)
        absent -= set(example.inputs)
        for name, task in model.tasks.items():
            references_of(model, name, example)
            own = for_task(model.recipe, name, example)
            if outside := task.outside_labels(own):
                outside_labels.setdefault(name, []).append(outside[0])
            if len(outside) < len(own.targets):
                trained.add(name)

    usable = without_bad(examples, check, bad)
    if absent and model.takes_missing_inputs:
        raise DoesNotFit(
            f"no example of the data has {plural(min(absent))}, which an encoder takes; name its column with "
            f"{min(absent)}_column, or leave the encoder out"
        )
    for name, targets in outside_labels.items():
        if name not in trained:
            problem = describe_outside_labels(name, targets)
            raise DataError(f"{problem}, so there is nothing to train on; is the target column right, and task.labels?")
    return usable, outside_labels


def _open_examples(
    recipe: Recipe, dataset: str | PartConfig | Dataset, split: str, bad: Bad | None
) -> Sequence[Example] | Iterable[Example]:
    """Load a split and check that the recipe can be trained on it. With ``bad`` rows that cannot be read are left out."""
    source = open_for(recipe, dataset)
    examples = load_split(source, split)
    if isinstance(examples, Sequence):
        examples = without_bad(examples, lambda example: None, bad) if bad is not None else examples
        first = examples[0]
    elif recipe.training.max_steps is None:
        raise BadRecipe("training.max_steps: a streamed data set has no length; set the number of steps to train")
    else:
        first = next(_stream(examples, bad is not None), None)
    check_data(recipe, first, dataset if isinstance(dataset, str) else type(source).__name__)
    return examples


def _describe_run(run: Run, trainer: MultimodalTrainer, examples: Iterable[Example]) -> dict[str, Any]:
    """Return how a finished run trained, for run.json."""
    options, arguments, device = trainer.model.recipe.training, trainer.args, str(trainer.args.device)
    return {
        "examples": len(examples) if isinstance(examples, Sequence) else None,
        "fingerprint": fingerprint(examples) if isinstance(examples, Sequence) else None,
        "blank_images": options.blank_images,
        "seed": options.seed,
        "steps": run.steps,
        "seconds": round(run.seconds, 1),
        "processes": arguments.world_size,
        "launches": trainer.launches,
        "device": device,
        "hardware": hardware(device),
        "precision": "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32",
        "skipped": len(run.skipped),
        "outside_labels": {task: len(targets) for task, targets in run.outside_labels.items()},
        "skipped_examples": skipped_record(run.skipped),
        "history": run.history,
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
        if is_main_process():
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
