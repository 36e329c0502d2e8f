"""Score every fusion family on easy-VQA's official splits, and compare with controls that do not see the image.

The controls are shuffled images, blanked images, and the same recipe trained on blank images. For each recipe a record is
written, from which its card is made. This takes many minutes, so it runs only if it is named.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Settings

DATASET = "easy-vqa"
RECIPES = ("cnn-concat-lstm", "cnn-attention-lstm", "cnn-product-lstm", "cnn-prefix-gpt")
CARDS = ROOT / "model_cards" / "runs"
COLUMNS = ("score", "shuffled", "blanked", "blind")
SHOWN = ("recipe", "accuracy", "images shuffled", "images blanked", "trained blind")


@dataclass(frozen=True)
class Row:
    """Hold a recipe's scores, each with ``value``, ``low`` and ``high``, and the seconds of training and measuring."""

    recipe: str
    metric: str
    scores: dict[str, dict[str, float]]
    trained: float
    measured: float

    @property
    def holds(self) -> bool:
        """Return whether the score is better than each control and the intervals do not overlap."""
        return all(self.scores["score"]["low"] > self.scores[name]["high"] for name in COLUMNS[1:])

    def to_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "metric": self.metric,
            **self.scores,
            "training_seconds": self.trained,
            "measuring_seconds": self.measured,
            "holds": self.holds,
        }

    def __str__(self) -> str:
        cells = [f"{s['value']:.4f} [{s['low']:.4f}, {s['high']:.4f}]" for s in (self.scores[name] for name in COLUMNS)]
        return _line(self.recipe, *cells, f"{self.trained:.0f}", f"{self.measured:.0f}")


def _line(recipe: str, *cells: str) -> str:
    return "  ".join([recipe.ljust(20), *(cell.ljust(23) for cell in cells[:4]), *(cell.rjust(9) for cell in cells[4:])])


def run(settings: Settings) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() if settings.work is None else nullcontext(settings.work) as work:
        print(_line(*SHOWN, "train, s", "test, s"), flush=True)
        for recipe in settings.recipes or RECIPES:
            record = measure(recipe, Path(work, "easy-vqa"), settings)
            if (folder := _cards(settings)) is not None:
                folder.mkdir(parents=True, exist_ok=True)
                text = json.dumps(record, indent=1, ensure_ascii=False)
                (folder / f"{recipe}.json").write_text(text + "\n", encoding="utf-8")
            evaluation = record["evaluations"][-1]
            metric = next(iter(evaluation["scores"]))
            scores = {"score": evaluation["scores"], **evaluation["controls"], "blind": record["blind"]["scores"]}
            yield Row(
                recipe,
                metric,
                {name: scores[name][metric] for name in COLUMNS},
                record["training"]["seconds"],
                evaluation["seconds"],
            )


def _cards(settings: Settings) -> Path | None:
    """Return the folder for records. A trial has none unless it is named, since cards describe the unchanged recipes."""
    trial = settings.epochs is not None or settings.max_steps is not None or settings.limit is not None
    return settings.cards or (None if trial else CARDS)


def measure(recipe: str, folder: Path, settings: Settings) -> dict[str, Any]:
    """Train a recipe and its blind control, measure both from their checkpoints, and return the record."""
    import mmzoo

    changes: dict[str, Any] = {"seed": settings.seed}
    if settings.epochs is not None:
        changes["epochs"] = settings.epochs
    if settings.max_steps is not None:
        changes["max_steps"] = settings.max_steps
    blinding = {**changes, "epochs": settings.blind_epochs, "blank_images": True}

    def trained(name: str, options: dict[str, Any]) -> mmzoo.Run:
        run = mmzoo.train(recipe, dataset=DATASET, output=folder / name, overwrite=True, progress=False, training=options)
        if not run.finished:
            raise KeyboardInterrupt
        return run

    def measured(name: str, *controls: str) -> dict[str, Any]:
        evaluation = mmzoo.evaluate(
            folder / name,
            dataset=DATASET,
            split="test",
            controls=controls,
            limit=settings.limit,
            seed=settings.seed,
            progress=False,
        )
        return evaluation.to_dict()

    model = trained(recipe, changes).model
    measured(recipe, "shuffled", "blanked")
    record = json.loads((folder / recipe / "run.json").read_text(encoding="utf-8"))
    control = trained(f"{recipe}-blind", blinding).model.provenance.run["training"]
    blind = measured(f"{recipe}-blind", "blanked")
    # It was trained on blank images, so only its scores on blank images mean something.
    blind["scores"] = blind.pop("controls")["blanked"]
    training = {key: control[key] for key in ("steps", "seconds", "seed", "blank_images")}
    return {**record, "blind": {**blind, "training": training}, "summary": model.summary().to_dict()}
