"""Compare an epoch of cached features with an epoch that encodes every image, for a frozen encoder of ViT-B/32's size.

Both sides use the collator of the same model on the same batches of the same files (JPEG, COCO's size), and end with features
on the model's device: one reads the cache, the other opens, preprocesses and encodes. The recipe caches all tokens, as for a
projector. The features of both sides are compared. The weights are random, which costs the same.

The pass that fills the cache, and encodes each distinct image once, is not measured.
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
CAPTIONS = ("a b c", "a red square", "two circles beside each other", "nothing")
TOLERANCE = 1e-3  # other batches are summed in another order
VIT_B_32 = {"model_type": "vit", "patch_size": 32}  # ViTConfig's own sizes are those of a base model


def run(settings: Settings) -> list[Ratio]:
    import torch
    from accelerate import Accelerator

    import mmzoo
    from mmzoo.data.collate import tensors
    from mmzoo.training.feature_cache import precompute

    with (
        tempfile.TemporaryDirectory() if settings.work is None else nullcontext(settings.work) as work,
        patch.dict(os.environ, MMZOO_CACHE=str(Path(work, "cache"))),
    ):
        examples = write_pictures(Path(work, "images"), settings.limit or IMAGES)
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
        plain, cached = model.collator(training=True), model.collator(training=True)
        cached.features = precompute(model, examples, accelerator, workers=0, reads=lambda: len(examples), progress=False)

        def epoch(collate: Any) -> Callable[[], float]:
            def once() -> float:
                started = time.perf_counter()
                total = torch.zeros((), device=accelerator.device)
                with torch.no_grad():
                    for at in range(0, len(examples), BATCH):
                        batch = collate(examples[at : at + BATCH])
                        moved = tensors(batch, accelerator.device)
                        total += model.features(moved["encoders"])["image"].tokens.sum()
                total.item()  # a GPU has then done its work
                return time.perf_counter() - started

            return once

        _compare(model, plain(examples[:BATCH]), cached(examples[:BATCH]))
        sides = alternate(epoch(cached), epoch(plain), repeats=settings.repeats, warm=True)
    name = f"features: time of an epoch's features, cached / encoded each time ({len(examples)} images, ViT-B/32 size)"
    return [Ratio(name, *sides, "s", TARGET, sides=("cached", "encoded"))]


def write_pictures(folder: Path, count: int) -> list[Any]:
    """Return examples whose pictures are files of smooth noise: of a photograph's size, and compressed like one."""
    import numpy as np
    from PIL import Image

    from mmzoo.interfaces import Example

    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for i in range(count):
        path = folder / f"{i}.jpg"
        coarse = np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
        examples.append(Example(str(i), str(path), "", (CAPTIONS[i % len(CAPTIONS)],)))
    return examples


def _compare(model: Any, plain: dict[str, Any], cached: dict[str, Any]) -> None:
    """Check that both sides give the same features."""
    import torch

    from mmzoo.data.collate import tensors

    device = model.device
    with torch.no_grad():
        one, other = (model.features(tensors(batch, device)["encoders"])["image"] for batch in (plain, cached))
    if not (
        torch.allclose(one.tokens, other.tokens, atol=TOLERANCE) and torch.allclose(one.pooled, other.pooled, atol=TOLERANCE)
    ):
        raise RuntimeError("the two sides did not give the same features")
