"""Build small models around an entry, and train, save and load them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmzoo.data.dataset import Dataset
from mmzoo.errors import DoesNotFit
from mmzoo.models.assemble import assemble
from mmzoo.models.build import build
from mmzoo.models.load import load
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.reading import read_recipe
from mmzoo.recipes.schema import Recipe
from mmzoo.registry.entries import Entry, split_use
from mmzoo.registry.manager import plugin_manager
from mmzoo.testing.samples import Sample
from mmzoo.training.run import train

PARTNERS = {"encoder": "cnn", "fusion": "projector", "language_model": "gpt-mini", "task": "vqa"}


def tiny(recipe: str | Recipe, **changes: Any) -> Recipe:
    """Return a recipe with every part in its entry's tiny form: small, random, and built without a download."""
    chosen = read_recipe(recipe, **changes)
    data = chosen.to_dict()
    for kind, part in chosen.parts().items():
        entry = plugin_manager().get(kind, split_use(part.use)[0])
        own = {key: value for key, value in part.options.items() if kind == "task" and key not in entry.tiny}
        head = {"use": split_use(part.use)[0], "train": part.train, "learning_rate": part.learning_rate}
        data[kind] = {**{key: value for key, value in head.items() if value is not None}, **own, **entry.tiny}
        if str(part.train).startswith("last:"):
            data[kind]["train"] = "last:1"
    return Recipe.of(data)


def tiny_parts(entry: Entry) -> Recipe:
    """Return a tiny recipe around one part, with the first partners that are compatible.

    Raises:
        DoesNotFit: no partner in this distribution is compatible.
    """
    reasons: list[str] = []
    for recipe in fitting(entry, reasons):
        return recipe
    raise DoesNotFit(f"{entry.label} is compatible with no partner: {reasons[-1]}")


def fitting(entry: Entry, reasons: list[str]) -> Iterator[Recipe]:
    """Yield tiny recipes around one part, with all compatible partners; the reasons of the others are added to ``reasons``."""
    for partners in _partners():
        try:
            recipe = with_partners(entry, partners)
            assemble(recipe, meta=True)
            yield recipe
        except DoesNotFit as error:
            reasons.append(str(error))


def _partners() -> Iterator[dict[str, str]]:
    for encoder in (PARTNERS["encoder"], "none"):
        for language in (PARTNERS["language_model"], "bert", "t5"):
            for fusion in (PARTNERS["fusion"], "prefix-mlp"):
                for task in (PARTNERS["task"], "classify"):
                    yield {"encoder": encoder, "language_model": language, "fusion": fusion, "task": task}


def with_partners(entry: Entry, partners: dict[str, str]) -> Recipe:
    """Return a tiny recipe of the entry and its ``partners``, by kind."""
    parts = {**partners, entry.kind: entry.name}
    return Recipe.of({kind: {"use": name, **plugin_manager().get(kind, name).tiny} for kind, name in parts.items()})


def round_trip(recipe: Recipe, folder: Path, *, steps: int = 2, dataset: Dataset | None = None) -> MultimodalModel:
    """Build a recipe, predict, train, save and load it, and check that the loaded model predicts exactly the same.

    Args:
        recipe: of the model.
        folder: that the model is saved in.
        steps: of training.
        dataset: `Sample` if None.

    Raises:
        AssertionError: which promise was broken.
    """
    sample = dataset or Sample()
    examples = list(sample.load(sample.splits()[-1]))
    built = build(recipe, seed=0)
    first = built.predict_examples(examples)
    assert len(first) == len(examples), f"predict returns {len(first)} predictions for {len(examples)} examples"
    options = {"max_steps": steps, "batch_size": 4, "precision": "fp32", "log_every": 1}
    run = train(recipe, dataset=sample, output=folder, progress=False, training=options)
    assert run.steps == steps, f"trained {run.steps} steps of {steps}"
    assert all(np.isfinite(entry["loss"]) for entry in run.history), "the loss is not finite"
    trained = run.model.predict_examples(examples)
    loaded = load(folder)
    state = loaded.state_dict()
    for name, value in run.model.state_dict().items():
        assert (state[name] == value).all(), f"{name} differs after loading"
    assert trained == loaded.predict_examples(examples), "the loaded model predicts otherwise than the saved one"
    return loaded
