"""Train with ``mmzoo.train``: in 16 bits beside float32, and with the features of the frozen encoder cached or not."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import step_times
from benchmarks.features import write_pictures
from benchmarks.gpu import device


class Training:
    """Train one recipe in several ways, each time from the same weights on the same batches.

    Args:
        folder: for pictures, features and models.
        sizes: ``vision``, ``text``, ``batch``, ``pictures``, ``steps``, ``warm`` and ``workers``.
    """

    def __init__(self, folder: str, sizes: dict[str, Any], seed: int) -> None:
        self.folder, self.sizes, self.seed = Path(folder), sizes, seed
        os.environ["MMZOO_CACHE"] = str(self.folder / "cache")
        self.examples = write_pictures(self.folder / "pictures", sizes["pictures"])

    def precision(self) -> str:
        """Return the recipe's name of the 16-bit type."""
        return "fp16" if device.half() is torch.float16 else "bf16"

    def train(self, precision: str, cache: bool) -> dict[str, Any]:
        """Return the seconds of a step, without the first ``warm`` ones, and the loss of each."""
        import mmzoo
        from mmzoo.data.dataset import Dataset

        examples, sizes = self.examples, self.sizes

        class Pictures(Dataset):
            def splits(self) -> list[str]:
                return ["train"]

            def load(self, split: str) -> list[Any]:
                return examples

        options = {"batch_size": sizes["batch"], "max_steps": sizes["steps"], "workers": sizes["workers"], "log_every": 1}
        options |= {"seed": self.seed, "learning_rate": 1e-3, "precision": precision, "cache_features": cache}
        options["save_every"] = sizes["steps"]  # not while the clock runs
        recipe = mmzoo.Recipe.of(
            {
                "encoder": {"use": "hf-vision", "config": sizes["vision"], "train": "frozen"},
                "fusion": "projector",
                "language_model": {"use": "hf-causal", "config": sizes["text"], "train": "full"},
                "task": "caption",
                "training": options,
            }
        )
        with step_times(device.now) as times, tempfile.TemporaryDirectory(dir=self.folder) as output:
            done = mmzoo.train(recipe, dataset=Pictures(None), output=Path(output, "model"), progress=False)
        measured = times[sizes["warm"] :]
        return {
            "seconds": (measured[-1] - measured[0]) / (len(measured) - 1),
            "losses": [entry["loss"] for entry in done.history],
        }
