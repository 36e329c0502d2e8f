"""Check entries that are not parts of a model: data sets, augmentations, metrics, recipes, formats and commands."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from mmzoo.common.sanitize import short_repr
from mmzoo.data.dataset import Dataset
from mmzoo.data.open import open_dataset
from mmzoo.errors import DataError, DoesNotFit, MmzooError
from mmzoo.evaluation.metric import Metric
from mmzoo.evaluation.statistics import measure
from mmzoo.formats.format import Clues, Format
from mmzoo.interfaces import Augmentation, Example, Prediction
from mmzoo.modalities.image import open_image
from mmzoo.modalities.pipeline import InputPipeline
from mmzoo.models.assemble import assemble
from mmzoo.models.build import build
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.reading import read_recipe
from mmzoo.recipes.resolve import resolve, resolve_parts
from mmzoo.recipes.schema import PartConfig, Recipe
from mmzoo.registry.manager import plugin_manager
from mmzoo.testing.contract import Inapplicable, check, expect
from mmzoo.testing.small import PARTNERS, Sample, round_trip, sample_of, tiny
from mmzoo.testing.subject import Subject, finite, shape
from mmzoo.training.randomness import Randomness
from mmzoo.training.run import train

FEW, PAIRS = 3, 12  # more pairs than a recall counts
SEEDS = 8  # with which an augmentation is tried


class Answers(NamedTuple):
    """Hold predictions of one kind that are right, others that are wrong, and the references of both."""

    right: list[Prediction]
    wrong: list[Prediction]
    references: list[list[str]]


def _answers(texts: Sequence[str], make: Callable[[str], Prediction]) -> Answers:
    right = [make(text) for text in texts]
    return Answers(right, right[::-1], [[text] for text in texts])


def _pairs() -> Answers:
    """Return pairs of an input and its text whose vectors are equal, or opposite."""
    units = [tuple(float(i == j) for j in range(PAIRS)) for i in range(PAIRS)]
    right = [Prediction(vectors={"image": unit, "text": unit}) for unit in units]
    wrong = [Prediction(vectors={"image": unit, "text": tuple(-value for value in unit)}) for unit in units]
    return Answers(right, wrong, [[f"text {i}"] for i in range(PAIRS)])


TEXTS = ("two dogs run after one ball", "some birds sit over there again")
ANSWERS = (
    _answers(TEXTS, lambda text: Prediction(label=text)),
    _answers(("2.5", "-1.0"), lambda text: Prediction(value=float(text))),
    _answers(TEXTS, lambda text: Prediction(labels=(text,), scores={other: float(other == text) for other in TEXTS})),
    _pairs(),
)


@check("dataset")
def examples(subject: Subject) -> None:
    """Require that a data set has splits, each with examples that have a distinct id, an image (or another input of the modality)
    that opens, and at least one target. A second reading must return the same examples, and examples must be picklable for
    data workers.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = opened(subject, Path(folder))
        splits = data.splits()
        named = isinstance(splits, Sequence) and not isinstance(splits, str) and all(isinstance(split, str) for split in splits)
        expect(splits and named, f"splits are {short_repr(splits)}, not a list of names")
        for split in splits:
            read = first(data, split)
            expect(read, f"split '{split}' is empty")
            strange = [example for example in read if not isinstance(example, Example)]
            expect(not strange, f"split '{split}' has {short_repr(strange[:1])}, not mmzoo.Example objects")
            expect(len({example.id for example in read}) == len(read), f"ids of split '{split}' repeat: {[e.id for e in read]}")
            for example in read:
                _check_example(example, subject.target.modality)
            again = first(data, split)
            expect([_facts(e) for e in again] == [_facts(e) for e in read], f"split '{split}' read again gives other examples")
            copied = pickle.loads(pickle.dumps(read))
            expect([_facts(e) for e in copied] == [_facts(e) for e in read], "examples differ after pickling")


def _check_example(example: Example, modality: str) -> None:
    expect(example.id and isinstance(example.id, str), f"an example's id is {example.id!r}")
    every = example.targets if isinstance(example.targets, Mapping) else {"": example.targets}
    texts = [text for targets in every.values() for text in targets]
    expect(texts and all(isinstance(text, str) for text in texts), f"{example.id}: targets are {example.targets!r}")
    expect(isinstance(example.text, str), f"{example.id}: text is {example.text!r}")
    inputs = example.of(modality)
    expect(bool(inputs), f"{example.id}: there is no {modality}")
    for image in inputs if modality == "image" else ():
        open_image(image)


def _facts(example: Example) -> tuple[object, ...]:
    return example.id, example.text, example.targets


def first(data: Dataset, split: str) -> list[Example]:
    examples: Iterable[Example] = data.load(split)
    expect(isinstance(examples, Iterable), f"load('{split}') returns {short_repr(examples)}, not examples")
    return list(islice(examples, FEW))


def opened(subject: Subject, folder: Path) -> Dataset:
    """Return the data set in its tiny form; one that reads the user's files gets some."""
    needs_files = subject.needs_variant and not subject.entry.variant
    use = f"{subject.entry.name}:{_own_files(folder)}" if needs_files else subject.entry.name
    return open_dataset(PartConfig(use=use, **subject.entry.tiny))


def _own_files(folder: Path) -> Path:
    """Write files like a user's: a table with images, and the images as files beside it."""
    import datasets

    rows = []
    for i, example in enumerate(Sample().load("train")):
        example.image.save(folder / f"{i}.png")
        target = next(iter(example.targets))
        rows.append({"image": (folder / f"{i}.png").read_bytes(), "text": example.text, "target": target})
    datasets.Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    return folder


@check("dataset")
def trains(subject: Subject) -> None:
    """Require that a small model trains two steps on the data set, with the first encoder of its modality."""
    recipe = tiny(Recipe.of({**PARTNERS, "encoder": _encoder(subject.target.modality)}))
    with tempfile.TemporaryDirectory() as folder:
        data = opened(subject, Path(folder))
        options = {"max_steps": 2, "batch_size": 2, "precision": "fp32"}
        run = train(recipe, dataset=data, output=Path(folder) / "model", split=data.splits()[0], progress=False, training=options)
        expect(run.steps == 2, f"it trained {run.steps} steps of 2")


def _encoder(modality: str) -> str:
    if modality == "image":
        return PARTNERS["encoder"]
    for entry in plugin_manager().registry.entries("encoder"):
        if entry.modality == modality and entry.variant is None:
            return entry.name
    raise Inapplicable(f"no installed plugin has an encoder of '{modality}' that works without a variant")


@check("augmentation")
def augments(subject: Subject) -> None:
    """Require that an augmentation has the modality of its entry and can be pickled. ``opened`` must keep the type and leave what
    it gets as it is; ``transformed`` must keep type and shape, and give finite values. Together they must change some inputs, and
    draw from the global random generators only: with these in the same state, they must give the same.
    """
    modality, own = subject.target.modality, subject.target(subject.target.Options(**subject.tiny))
    expect(subject.entry.modality == modality, f"its modality is '{modality}', and that of the entry '{subject.entry.modality}'")
    own = pickle.loads(pickle.dumps(own))
    pipeline = assemble(tiny(Recipe.of({**PARTNERS, "encoder": _encoder(modality)})), meta=True).input_pipeline()
    changed = False
    for seed, value in product(range(SEEDS), pipeline.reader.probes()):
        result, again = (_augmented(own, pipeline, value, seed) for _ in range(2))
        same = result.shape == again.shape and torch.equal(result, again)
        expect(same, "with the random generators in the same state, it gives something else")
        plain = pipeline.transform(value)  # type: ignore[misc]
        changed = changed or plain.shape != result.shape or not torch.equal(plain, result)
    expect(changed, f"it changes nothing: {len(pipeline.reader.probes())} inputs, each {SEEDS} times, are as before")


def _augmented(own: Augmentation, pipeline: InputPipeline, value: Any, seed: int) -> Tensor:
    """Return the encoder's input that an augmentation makes of an opened one, after checking what it returns."""
    before, kind = pickle.dumps(value), Image.Image if isinstance(value, Image.Image) else type(value)
    with Randomness().used((seed,)):
        opened = own.opened(value)
        expect(isinstance(opened, kind), f"opened makes a {type(opened).__name__} of a {kind.__name__}")
        expect(pickle.dumps(value) == before, "opened changes what it gets; return a copy")
        plain: Tensor = pipeline.transform(opened)  # type: ignore[misc]
        result = own.transformed(plain.clone())
    kept = isinstance(result, Tensor) and result.dtype == plain.dtype and result.shape == plain.shape
    expect(kept, f"transformed makes {shape(result)} of {shape(plain)}, or changes the type")
    expect(finite(result), "transformed gives values that are NaN or infinite")
    return result


@check("metric")
def scores(subject: Subject) -> None:
    """Require that predictions that equal their references score ``perfect``, and others do not. The order of examples must not
    matter. Rows must be [examples, statistics] of finite numbers, and scores must keep the leading shape of their totals. A
    metric of numbers must raise a `ValueError` or `DataError` for texts that are not numbers.
    """
    try:
        metric = subject.target(subject.target.Options(**subject.tiny))
    except DataError as error:
        raise Inapplicable(str(error)) from None
    for answers in ANSWERS:
        try:
            metric.rows(answers.right, answers.references)
        except (ValueError, DataError):
            continue
        _check_rows(metric, answers)
        _check_values(metric, answers)
        return
    expect(False, "rows refuses right labels, numbers, sets of labels and vectors")


def _check_rows(metric: Metric, answers: Answers) -> None:
    """Check the shapes and types of rows and scores."""
    rows = metric.rows(answers.right, answers.references)
    numbers = isinstance(rows, np.ndarray) and np.issubdtype(rows.dtype, np.number)
    expect(numbers, f"rows returns {short_repr(rows)}, not an array of numbers")
    count = len(answers.right)
    expect(np.ndim(rows) == 2 and len(rows) == count, f"rows of {count} examples are {np.shape(rows)}")
    expect(np.isfinite(rows).all(), "rows are not finite")
    totals = np.stack([rows.sum(0)] * 3)
    shape = np.shape(metric.score(totals))
    expect(shape == (3,), f"scores of totals {totals.shape} are {shape}, not (3,)")


def _check_values(metric: Metric, answers: Answers) -> None:
    """Check that right predictions score ``perfect`` in any order, and wrong ones worse."""
    right, references, groups = answers.right, answers.references, range(len(answers.right))
    perfect = metric.perfect
    for name, predictions, targets in (("right", right, references), ("in another order", right[::-1], references[::-1])):
        value = measure(metric, predictions, targets, groups).value
        expect(abs(value - perfect) < 1e-6, f"predictions that are {name} score {value}, not {perfect}")
    wrong = measure(metric, answers.wrong, references, groups).value
    problem = f"predictions that are not their references score {wrong}"
    expect(abs(wrong - perfect) > 1e-6, f"{problem} too")
    direction = f"{problem}, and perfect is {perfect}: smaller_is_better must be {not metric.smaller_is_better}"
    expect((wrong > perfect) == metric.smaller_is_better, direction)


@check("recipe")
def builds(subject: Subject) -> None:
    """Require that a recipe names all its parts with valid options, and that they are compatible. In its tiny form it must train
    two steps, and the model must predict exactly the same after saving and loading.
    """
    resolve_parts(read_recipe(subject.entry.name))  # before tiny replaces the options
    recipe = tiny(subject.entry.name)
    encoder = resolve("encoder", next(iter(recipe.encoders.values())))
    task = resolve("task", next(iter(recipe.tasks.values())))
    with tempfile.TemporaryDirectory() as folder:
        loaded = round_trip(recipe, Path(folder) / "model", dataset=sample_of(encoder.cls, task.cls, task.options))
    uses = [[part.use for part in each.parts().values()] for each in (recipe, loaded.recipe)]
    expect(uses[0] == uses[1], f"it was built of {uses[0]} and loaded as {uses[1]}")


@check("format")
def exchange(subject: Subject) -> None:
    """Require that a format reads, writes, or both. It must not recognise an empty source, and must refuse another format's
    source with one of mmzoo's errors. If it can represent a tiny model, reading back what it wrote must give a model with the
    same predictions.
    """
    cls = subject.target
    expect(cls.ways(), "it has neither read nor write")
    expect(cls.recognises(Clues()) is False, "it recognises a source of which nothing is known")
    chosen = cls(cls.Options(**subject.tiny))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "import" in cls.ways():
            (folder / "other").mkdir()
            (folder / "other" / "notes.txt").write_text("nothing of it", encoding="utf-8")
            with contextlib.suppress(MmzooError):
                chosen.read(str(folder / "other"))
                raise AssertionError("a folder with only notes.txt is read without an error")
        if "export" in cls.ways():
            _write_and_read(chosen, build(tiny(Recipe(**PARTNERS)), seed=0), folder / "written")


def _write_and_read(chosen: Format, model: MultimodalModel, folder: Path) -> None:
    folder.mkdir()
    try:
        chosen.write(model, folder)
    except DoesNotFit as reason:
        expect(str(reason).strip(), "it refuses a model without a reason")
        return
    expect(any(folder.iterdir()), "it writes no file")
    if "import" in chosen.ways():
        sample = Sample().load("test")
        actual, wanted = (
            chosen.read(str(folder)).predict_examples(sample, scores=True),
            model.predict_examples(sample, scores=True),
        )
        expect(actual == wanted, f"it predicts {actual[0]} after reading back, and {wanted[0]} before")


@check("command")
def helps(subject: Subject) -> None:
    """Require that a command is a function that typer accepts: ``--help`` must print and exit with 0."""
    own = [entry.name for entry in plugin_manager().registry.entries("command")]
    expect(subject.entry.name in own, f"there is no command '{subject.entry.name}'")
    app = typer.Typer(add_completion=False)
    app.command(subject.entry.name, help=subject.entry.summary)(subject.target)
    done = CliRunner().invoke(app, ["--help"])
    expect(done.exit_code == 0, f"--help exits with {done.exit_code}: {done.exception!r}")
    expect("Usage" in done.output, f"--help prints {done.output!r}")
