"""The features of a frozen encoder of ViT-B/32's size: an epoch of them from the second epoch on, beside encoding every
image every time.

Both sides go through the collator of the same model over the same batches of the same files (JPEG, COCO's size), to features
on the model's device: ours reads what an earlier pass kept, theirs opens, preprocesses and encodes. The recipe keeps all
tokens, as a projector reads them. What both sides give is compared. The weights are random, which costs the same.

The epoch that fills the cache is not on the clock; it encodes each distinct image once.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.common import Ratio, Settings, alternate

TARGET = 1 / 10  # of the time
IMAGES, BATCH = 256, 32
SIZE = (640, 480)
TOLERANCE = 1e-3  # batches of another make-up are summed in another order
VIT_B_32 = {"model_type": "vit", "patch_size": 32}  # ViTConfig's own sizes are those of a base model


def run(settings: Settings) -> list[Ratio]:
    import torch
    from accelerate import Accelerator

    import mmzoo
    from mmzoo.training.feature_cache import precompute

    with (
        tempfile.TemporaryDirectory() if settings.work is None else nullcontext(settings.work) as work,
        patch.dict(os.environ, MMZOO_CACHE=str(Path(work, "cache"))),
    ):
        examples = _examples(Path(work, "images"), settings.limit or IMAGES)
        accelerator = Accelerator()
        recipe = mmzoo.Recipe.of(
            {
                "encoder": {"use": "hf-vision", "config": VIT_B_32, "train": "frozen"},
                "fusion": "projector",
                "language_model": "gpt-mini",
                "task": "caption",
                "training": {"batch_size": BATCH, "cache_features": True},
            }
        )
        model = mmzoo.build(recipe, seed=settings.seed).to(accelerator.device)
        plain, kept = model.collator(training=True), model.collator(training=True)
        kept.features = precompute(model, examples, accelerator, workers=0, reads=lambda: len(examples), progress=False)

        def epoch(collate: Any) -> Callable[[], float]:
            def once() -> float:
                started = time.perf_counter()
                total = torch.zeros((), device=accelerator.device)
                with torch.no_grad():
                    for at in range(0, len(examples), BATCH):
                        batch = collate(examples[at : at + BATCH])
                        moved = {key: value.to(accelerator.device) for key, value in batch.items() if hasattr(value, "to")}
                        total += model.batch_features(moved).tokens.sum()
                total.item()  # a GPU has then done its work
                return time.perf_counter() - started

            return once

        _compare(model, plain(examples[:BATCH]), kept(examples[:BATCH]))
        sides = alternate(epoch(kept), epoch(plain), repeats=settings.repeats, warm=True)
    name = f"features: time of an epoch's features, kept / encoded each time ({len(examples)} images, ViT-B/32 size)"
    return [Ratio(name, *sides, "s", TARGET, sides=("kept", "encoded"))]


def _examples(folder: Path, count: int) -> list[Any]:
    """Photographs in size and compressibility: noise, made smooth."""
    import numpy as np
    from PIL import Image

    from mmzoo.interfaces.example import Example

    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for i in range(count):
        path = folder / f"{i}.jpg"
        coarse = np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
        found.append(Example(str(i), str(path), "", ("a b c",)))
    return found


def _compare(model: Any, plain: dict[str, Any], kept: dict[str, Any]) -> None:
    """Both sides must give the same."""
    import torch

    device = model.device
    with torch.no_grad():
        one, other = (
            model.batch_features({key: value.to(device) for key, value in batch.items() if hasattr(value, "to")})
            for batch in (plain, kept)
        )
    if not (
        torch.allclose(one.tokens, other.tokens, atol=TOLERANCE) and torch.allclose(one.pooled, other.pooled, atol=TOLERANCE)
    ):
        raise RuntimeError("the two sides did not give the same features")
