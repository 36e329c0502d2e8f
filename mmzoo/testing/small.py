"""Create examples in memory; build small models around an entry, and train, save and load them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmzoo.data.dataset import Dataset
from mmzoo.errors import BadInput, DataError, DoesNotFit
from mmzoo.interfaces import CAUSAL, Encoder, Example, FeatureSpec, LanguageSpec, Task
from mmzoo.interfaces.kinds import kind_of
from mmzoo.modalities.reader import NONE, Reader
from mmzoo.models.assemble import assemble
from mmzoo.models.build import build
from mmzoo.models.load import load
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.reading import read_recipe
from mmzoo.recipes.schema import Recipe
from mmzoo.registry.entries import Entry, split_use
from mmzoo.registry.manager import plugin_manager
from mmzoo.training.run import train

PARTNERS = {"encoder": "cnn", "fusion": "projector", "language_model": "gpt-mini", "task": "vqa"}
OTHERS = {"encoder": ["none"], "language_model": ["bert", "t5"], "fusion": ["prefix-mlp"], "task": ["classify"]}
TRIED = {kind: [PARTNERS[kind], *names] for kind, names in OTHERS.items()}  # the last kind varies first


class Sample(Dataset):
    """Provide ``count`` coloured squares with questions and answers, and a tone of another length for each; all splits are equal.

    Args:
        size: of the squares, in pixels.
        numbers: use numbers as answers.
        probes: inputs of ``modality`` that replace the squares and tones.
    """

    COLOURS = ("red", "green", "blue")
    RATE = 16_000

    def __init__(
        self, count: int = 8, size: int = 32, *, numbers: bool = False, modality: str = "image", probes: Sequence[Any] = ()
    ) -> None:
        super().__init__(None)
        self.count, self.size, self.numbers, self.of, self.probes = count, size, numbers, modality, probes

    def splits(self) -> list[str]:
        return ["train", "test"]

    def load(self, split: str) -> Sequence[Example]:
        random = np.random.default_rng(0)
        examples = []
        for i in range(self.count):
            colour = self.COLOURS[i % len(self.COLOURS)]
            picture = Image.new("RGB", (self.size, self.size), colour)
            picture.putpixel((int(random.integers(self.size)), int(random.integers(self.size))), (0, 0, 0))
            seconds = np.arange(self.RATE * (2 + i % 4) // 10) / self.RATE
            tone = 0.5 * np.sin(2 * np.pi * 220 * 2 ** (i % len(self.COLOURS)) * seconds)
            audio = {"array": tone.astype(np.float32), "sampling_rate": self.RATE}
            answer = str(i % len(self.COLOURS) - 0.5) if self.numbers else colour
            example = Example(f"{split}/{i}", picture, "what color is it" + "?" * (i % 2), (answer,), audio=audio)
            examples.append(example.with_inputs(self.of, [self.probes[i % len(self.probes)]]) if self.probes else example)
        return examples


def sample_of(encoder: type[Encoder] | None = None, task: type[Task] | None = None, options: Any = None) -> Dataset:
    """Return a data set that an encoder can read and a task with ``options`` accepts, with numbers as answers if it needs them.

    An encoder of images or audio gets images, or arrays with their sampling rate, if its reader opens them; otherwise the
    `probes` of the reader.

    Raises:
        DataError: the reader opens neither.
    """
    numbers = task is not None and not _takes(task, options, Sample()) and _takes(task, options, Sample(numbers=True))
    if encoder is None or encoder.modality == NONE:
        return Sample(numbers=numbers)
    modality, reader = encoder.modality, encoder.reader
    sample = Sample(numbers=numbers)
    if _reads(reader, sample.load("train")[0].of(modality)):
        return sample
    probes = reader.probes()
    if not probes or not _reads(reader, probes):
        raise DataError(f"its reader cannot read a sample of '{modality}'; read must accept what probes returns")
    return Sample(numbers=numbers, modality=modality, probes=probes)


def _reads(reader: Reader, sources: Sequence[Any]) -> bool:
    try:
        for source in sources:
            reader.read(source)
    except BadInput:
        return False
    return bool(sources)


def _takes(task: type[Task], options: Any, sample: Sample) -> bool:
    """Return whether a task accepts the answers of a sample."""
    examples = sample.load("train")
    try:
        learned = {**options.model_dump(), **task.learn(options, examples)}
        instance = task(task.Options(**learned), LanguageSpec(CAUSAL, 8, 8, None, True, 0), {"image": FeatureSpec(8, 8, 4)})
        for example in examples:
            instance.references(example)
    except (DataError, ValueError):
        return False
    return True


def tiny(recipe: str | Recipe, **changes: Any) -> Recipe:
    """Return a recipe with every part in its entry's tiny form: small, random, and built without a download."""
    chosen = read_recipe(recipe, **changes)
    small = chosen
    for key, part in chosen.parts().items():
        kind = kind_of(key)
        entry = plugin_manager().get(kind, split_use(part.use)[0])
        own = {name: value for name, value in part.options.items() if kind == "task" and name not in entry.tiny}
        head = {"use": split_use(part.use)[0], "train": part.train, "learning_rate": part.learning_rate}
        if kind == "task":
            head |= {"weight": part.weight, "target": part.target}  # type: ignore[attr-defined]
        data = {**{name: value for name, value in head.items() if value is not None}, **own, **entry.tiny}
        if str(part.train).startswith("last:"):
            data["train"] = "last:1"
        small = small.replace_part(key, type(part).of(data, key))
    return small


def tiny_parts(entry: Entry) -> Recipe:
    """Return a tiny recipe around one part, with the first partners that are compatible.

    Raises:
        DoesNotFit: no partner in this distribution is compatible.
    """
    reasons: list[str] = []
    if (recipe := next(fitting(entry, reasons), None)) is None:
        raise DoesNotFit(f"{entry.label} is compatible with no partner: {reasons[-1]}")
    return recipe


def fitting(entry: Entry, reasons: list[str]) -> Iterator[Recipe]:
    """Yield tiny recipes around one part, with all compatible partners; the reasons of the others are added to ``reasons``."""
    for names in itertools.product(*TRIED.values()):
        try:
            recipe = with_partners(entry, dict(zip(TRIED, names, strict=True)))
            assemble(recipe, meta=True)
            yield recipe
        except DoesNotFit as error:
            reasons.append(str(error))


def with_partners(entry: Entry, partners: dict[str, str]) -> Recipe:
    """Return a tiny recipe of the entry and its ``partners``, by kind; a joint fusion gets two encoders."""
    names = {**partners, entry.kind: entry.name}
    parts: dict[str, Any] = {kind: {"use": name, **plugin_manager().get(kind, name).tiny} for kind, name in names.items()}
    if getattr(plugin_manager().get("fusion", names["fusion"]).load(), "joint", False):
        own = parts.pop("encoder")
        parts["encoders"] = {"one": own, "two": own}
    return Recipe.of(parts)


def round_trip(recipe: Recipe, folder: Path, *, steps: int = 2, dataset: Dataset | None = None) -> MultimodalModel:
    """Build a recipe, predict, train, save and load it, and check that the loaded model predicts exactly the same.

    The model is saved in ``folder``; the data set is `Sample` if it is None.

    Raises:
        AssertionError: which promise was broken.
    """
    sample = dataset or Sample()
    examples = list(sample.load(sample.splits()[-1]))
    built = build(recipe, seed=0)
    first = built.predict_examples(examples, scores=True)
    assert len(first) == len(examples), f"predict returns {len(first)} predictions for {len(examples)} examples"
    options = {"max_steps": steps, "batch_size": 4, "precision": "fp32", "log_every": 1}
    run = train(recipe, dataset=sample, output=folder, progress=False, training=options)
    assert run.steps == steps, f"trained {run.steps} steps of {steps}"
    assert all(np.isfinite(entry["loss"]) for entry in run.history), "the loss is not finite"
    trained = run.model.predict_examples(examples, scores=True)
    torch.manual_seed(1)  # a part that draws its values anew must get others
    loaded = load(folder)
    state = loaded.state_dict()
    for name, value in run.model.state_dict().items():
        assert (state[name] == value).all(), f"{name} differs after loading"
    assert trained == loaded.predict_examples(examples, scores=True), "the loaded model predicts otherwise than the saved one"
    return loaded
