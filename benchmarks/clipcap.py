"""Compare one epoch of ClipCap's MLP training at GPT-2's size with a plain loop that works like ClipCap's train.py.

The original (Mokady et al. 2021; https://github.com/rmokady/CLIP_prefix_caption, train.py) pads every caption to one length,
min(mean + 10 deviations, longest), computes logits at every position, and lets gradients into all of GPT-2 although only the
mapper is trained. Both sides start from the same weights and see the same batches of the same captions, with precomputed image
embeddings; the mean loss of each step must agree to 1e-4.

Caption lengths are like COCO's: 12 tokens on average with a deviation of 2.5, the end token included; the original pads to 37.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Ratio, Settings, alternate, child, step_times

SPEED, MEMORY = 4.0, 0.5
TOLERANCE = 1e-4
CAPTIONS, BATCH, LENGTH = 160, 40, 10
RATE = 2e-5
VOCABULARY, CONTEXT = 50257, 1024
RECIPE: dict[str, Any] = {
    "encoder": {
        "use": "clip",
        "train": "frozen",
        "config": {
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 16,
            "projection_dim": 512,
        },
    },
    "fusion": {"use": "prefix-mlp", "length": LENGTH},
    "language_model": {"use": "gpt2", "train": "frozen", "config": {"model_type": "gpt2"}},
    "task": "caption",
    "training": {
        "batch_size": BATCH,
        "epochs": 1,
        "learning_rate": RATE,
        "schedule": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 0,
        "precision": "fp32",
        "workers": 0,
        "log_every": 1,
    },
}


def run(settings: Settings) -> list[Ratio]:
    code = "import sys; from benchmarks import clipcap; clipcap.{}(int(sys.argv[1]))"
    runs: dict[str, list[dict[str, Any]]] = {"mmzoo": [], "plain": []}

    def side(name: str) -> dict[str, Any]:
        result = json.loads(child("-c", code.format(name), str(settings.seed)).splitlines()[-1])
        runs[name].append(result)
        return result

    alternate(lambda: side("mmzoo"), lambda: side("plain"), repeats=settings.repeats)
    for ours, theirs in zip(runs["mmzoo"], runs["plain"], strict=True):
        worst = max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
        if worst > TOLERANCE:
            raise RuntimeError(f"the two sides did not do the same: their losses differ by {worst:.2e}")
    values = {name: {key: [one[key] for one in results] for key in ("seconds", "bytes")} for name, results in runs.items()}
    sides = ("mmzoo.train", "as ClipCap's train.py")
    return [
        Ratio(
            f"clipcap: epochs a second ({CAPTIONS} captions in batches of {BATCH})",
            [1 / s for s in values["mmzoo"]["seconds"]],
            [1 / s for s in values["plain"]["seconds"]],
            "epochs/s",
            SPEED,
            higher=True,
            sides=sides,
        ),
        Ratio(
            "clipcap: peak memory of the process",
            [b / 1e9 for b in values["mmzoo"]["bytes"]],
            [b / 1e9 for b in values["plain"]["bytes"]],
            "GB",
            MEMORY,
            sides=sides,
        ),
    ]


def _examples(seed: int) -> list[Any]:
    """Return captions of random letters, one byte a token, each with its own image."""
    import numpy as np

    from mmzoo.interfaces import Example

    random = np.random.default_rng(seed)
    lengths = np.clip(np.round(random.normal(12, 2.5, CAPTIONS)), 7, 37).astype(int)
    lengths[-1] = 37  # COCO's few long ones make the original pad to the mean + 10 deviations
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return [
        Example(str(i), random.integers(0, 255, (16, 16, 3), dtype=np.uint8), "", ("".join(random.choice(letters, n - 1)),))
        for i, n in enumerate(lengths)
    ]


def _report(seconds: float, losses: list[float]) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": seconds, "bytes": peak, "losses": losses}))


def mmzoo(seed: int) -> None:
    """Train one epoch with `mmzoo.train`; the clock runs from the first step to the end of the last."""
    import mmzoo as package
    from mmzoo.data.dataset import Dataset

    class Captions(Dataset):
        def splits(self) -> list[str]:
            return ["train"]

        def load(self, split: str) -> list[Any]:
            return _examples(seed)

    with step_times() as times, tempfile.TemporaryDirectory() as folder:
        recipe = {**RECIPE, "training": {**RECIPE["training"], "seed": seed}}
        done = package.train(package.Recipe.of(recipe), dataset=Captions(None), output=Path(folder, "m"), progress=False)
    _report(times[-1] - times[0], [entry["loss"] for entry in done.history])


def plain(seed: int) -> None:
    """Train one epoch as the original does."""
    import torch
    from torch.nn import functional as F

    import mmzoo as package
    from mmzoo.training.sampling import Shuffled

    examples = _examples(seed)
    model = package.build(package.Recipe.of(RECIPE), seed=seed)
    gpt, mapper = model.language_model.model, model.fusion
    tokenizer = model.language_model.tokenizer
    rows = [
        tokenizer(example.targets[0], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for example in examples
    ]
    lengths = torch.tensor([len(row) for row in rows]).float()
    longest = min(int(lengths.mean() + lengths.std() * 10), int(lengths.max()))
    batch = model.collator(training=True)(examples)
    with torch.no_grad():
        embeddings = model.features(batch["encoders"])["image"].pooled
    del model.encoders["image"]
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), LENGTH + longest)
    for i, row in enumerate(rows):
        row = row[:longest]
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, : LENGTH + len(row)] = 1
    gpt.requires_grad_(True).eval()
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=RATE, weight_decay=0.01)
    order = list(Shuffled(examples, seed, ""))
    losses = []
    began = time.perf_counter()
    for at in range(0, len(order), BATCH):
        rows_now = order[at : at + BATCH]
        now = tokens[rows_now]
        prefix = mapper.prefix(embeddings[rows_now])
        inputs = torch.cat([prefix, gpt.transformer.wte(now)], dim=1)
        labels = torch.cat([now.new_zeros(len(now), LENGTH), now], dim=1)
        logits = gpt(inputs_embeds=inputs, attention_mask=mask[rows_now]).logits[:, LENGTH - 1 : -1]
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, LENGTH:].flatten(), ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    _report(time.perf_counter() - began, losses)
