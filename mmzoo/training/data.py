"""Open the training data of a run, learn from them what the recipe leaves open, and check them before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from mmzoo.data import provenance
from mmzoo.data.bad import Bad, readable, without_bad
from mmzoo.data.mixture import Mixture, Source, StreamMixture, no_source
from mmzoo.data.open import for_task, no_target, takes_default, target_of
from mmzoo.data.tokens import check_marks
from mmzoo.errors import BadRecipe, DataError, DoesNotFit
from mmzoo.evaluation.scoring import describe_outside_labels, references_of
from mmzoo.interfaces import Example
from mmzoo.modalities.reader import plural
from mmzoo.models.compatibility import check_data
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes import licence
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import Recipe
from mmzoo.training.mixing import check_streams

LEARNING_SAMPLE = 100_000  # examples of a stream that labels and vocabulary are learned from


def open_examples(
    recipe: Recipe, sources: Sequence[Source], split: str, bad: Bad | None
) -> Sequence[Example] | Iterable[Example]:
    """Load the training examples of all sources and check that the recipe can be trained on them. With ``bad`` rows that cannot
    be read are left out."""
    parts: list[Any] = []
    served: set[str] = set()
    for source in sources:
        examples, first = _open_source(recipe, source, source.split or split, bad)
        served |= source.tasks(recipe, first)
        parts.append(examples)
    if without := [task for task in recipe.tasks if task not in served]:
        raise no_source(without[0])
    names = [source.name for source in sources]
    streamed = not all(isinstance(part, Sequence) for part in parts)
    examples = parts[0] if len(parts) == 1 else StreamMixture(names, parts) if streamed else Mixture(names, parts)
    if streamed:
        check_streams(recipe.data, examples)
    return examples


def _open_source(
    recipe: Recipe, source: Source, split: str, bad: Bad | None
) -> tuple[Sequence[Example] | Iterable[Example], Example | None]:
    """Return the examples of a source, and the first."""
    examples = source.load(recipe, split)
    if isinstance(examples, Sequence):
        examples = without_bad(examples, lambda example: None, bad) if bad is not None else examples
        first = examples[0]
    elif recipe.training.max_steps is None:
        raise BadRecipe("training.max_steps: a streamed data set has no length; set the number of steps to train")
    else:
        first = next(_stream(examples, bad is not None), None)
    check_data(recipe, first, source.title)
    return examples, first


def describe_sources(sources: Sequence[Source], split: str) -> dict[str, Any]:
    """Return the record of the training data: as `provenance.describe` of one data set; of several their names joined, and
    ``datasets`` with the record of each."""
    records = [{**provenance.describe(source.spec), "split": source.split or split} for source in sources]
    if len(records) == 1:
        return records[0]
    return {
        "dataset": " + ".join(record["dataset"] for record in records),
        "local": any(record["local"] for record in records),
        "dataset_options": {},
        "license": licence.join(record["license"] for record in records),
        "split": ", ".join(dict.fromkeys(record["split"] for record in records)),
        "datasets": [{**record, "task": source.task} for source, record in zip(sources, records, strict=True)],
    }


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


def check_examples(
    model: MultimodalModel, examples: Sequence[Example] | Iterable[Example], bad: Bad | None
) -> tuple[Sequence[Example] | Iterable[Example], dict[str, list[str]]]:
    """Check, before the first step, that the tasks can represent the targets, and that each encoder has an input at all. Of a
    stream nothing is checked.

    Returns:
        The examples; with ``bad`` without those that cannot be used. By task a target of each example that has one outside the
        label set, which the loss leaves out.

    Raises:
        DataError: a target that its task cannot represent, or none is in a label set.
        DoesNotFit: no example has an input of an encoder.
    """
    if not isinstance(examples, Sequence):
        return examples, {}
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
