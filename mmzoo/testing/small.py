"""Small models around an entry, and their way through training, saving and loading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmzoo import catalogue
from mmzoo.build import assemble, build, load, read_recipe
from mmzoo.errors import DoesNotFit
from mmzoo.model import MultimodalModel
from mmzoo.plugins import host
from mmzoo.recipe import Recipe
from mmzoo.registry import Entry, split_use
from mmzoo.testing.samples import Sample
from mmzoo.train import train

PARTNERS = {"encoder": "cnn", "fusion": "projector", "language_model": "gpt-mini", "task": "vqa"}


def tiny(recipe: str | Recipe, **changes: Any) -> Recipe:
    """A recipe with every part in its entry's tiny form: small, random, and built with no download."""
    chosen = read_recipe(recipe, **changes)
    data = chosen.to_dict()
    for kind, part in chosen.parts().items():
        entry = host().get(kind, split_use(part.use)[0])
        own = {key: value for key, value in part.options.items() if kind == "task" and key not in entry.tiny}
        head = {"use": split_use(part.use)[0], "train": part.train, "learning_rate": part.learning_rate}
        data[kind] = {**{key: value for key, value in head.items() if value is not None}, **own, **entry.tiny}
        if str(part.train).startswith("last:"):
            data[kind]["train"] = "last:1"
    return Recipe.of(data)


def tiny_parts(entry: Entry) -> Recipe:
    """A tiny recipe around one part, with the first partners that it fits.

    Raises:
        DoesNotFit: no in-tree partner fits it.
    """
    reasons = []
    for partners in _partners(entry):
        parts = {**partners, entry.kind: entry.name}
        try:
            recipe = Recipe.of({kind: _tiny_part(kind, name) for kind, name in parts.items()})
            assemble(recipe, meta=True)
            return recipe
        except DoesNotFit as error:
            reasons.append(str(error))
    raise DoesNotFit(f"{entry.label} fits no partner: {reasons[-1]}")


def _partners(entry: Entry) -> Iterator[dict[str, str]]:
    for encoder in (PARTNERS["encoder"], "none"):
        for language in (PARTNERS["language_model"], "bert", "t5"):
            for fusion in (PARTNERS["fusion"], "prefix-mlp"):
                for task in (PARTNERS["task"], "classify"):
                    yield {"encoder": encoder, "language_model": language, "fusion": fusion, "task": task}


def _tiny_part(kind: str, name: str) -> dict[str, Any]:
    entry = next(e for e in catalogue.entries(kind) if e.name == name)
    return {"use": name, **entry.tiny}


def round_trip(recipe: Recipe, folder: Path, *, steps: int = 2) -> MultimodalModel:
    """Build a recipe, run it, train it for ``steps`` on `Sample`, save it, load it, and check that the loaded model
    says the same to the last bit.

    Raises:
        AssertionError: saying which promise was broken.
    """
    sample = Sample()
    examples = sample.load("test")
    built = build(recipe, seed=0)
    first = built.predict_examples(examples)
    assert len(first) == len(examples), "predict gives one prediction an example"
    options = {"max_steps": steps, "batch_size": 4, "precision": "fp32", "log_every": 1}
    run = train(recipe, dataset=sample, output=folder, progress=False, train=options)
    assert run.steps == steps, f"trained {run.steps} steps of {steps}"
    assert all(np.isfinite(entry["loss"]) for entry in run.history), "the loss is finite"
    trained = run.model.predict_examples(examples)
    loaded = load(folder)
    again = loaded.predict_examples(examples)
    assert trained == again, "a loaded model predicts the same, to the last bit"
    for name, value in run.model.state_dict().items():
        assert (loaded.state_dict()[name] == value).all(), f"{name} differs after loading"
    return loaded
