"""Compare ``mmzoo.train`` with the training loop that a user would write: steps a second on easy-VQA with cnn-product-lstm.

Both sides start from the same weights and see the same batches in the same order, through the same collator, with AdamW,
gradient clipping and a cosine schedule. So both must reach the same loss, which is checked. The clock runs from the end of the
first step to the end of the last, so building and saving do not count.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Ratio, Settings, alternate, step_times

TARGET = 0.95
RECIPE, DATASET = "cnn-product-lstm", "easy-vqa"
LOGGED = 10  # steps between entries of the loss curve
TOLERANCE = 0.02  # of the mean loss of the last steps: sums of floats may be done in another order


def run(settings: Settings) -> list[Ratio]:
    from mmzoo.data.open import load_split, open_dataset

    if settings.steps <= LOGGED:
        raise ValueError(f"--steps: at least {LOGGED + 1}")
    examples = load_split(open_dataset(DATASET), "train")
    assert isinstance(examples, Sequence)
    losses: dict[str, list[float]] = {"mmzoo": [], "loop": []}

    def ours() -> float:
        seconds, loss = _mmzoo(settings.steps)
        losses["mmzoo"].append(loss)
        return (settings.steps - 1) / seconds

    def theirs() -> float:
        seconds, loss = _loop(examples, settings.steps)
        losses["loop"].append(loss)
        return (settings.steps - 1) / seconds

    speeds = alternate(ours, theirs, repeats=settings.repeats)
    for one, other in zip(losses["mmzoo"], losses["loop"], strict=True):
        if not math.isclose(one, other, rel_tol=TOLERANCE):
            raise RuntimeError(f"the two sides did not do the same: loss {one:.4f} and {other:.4f}")
    name = f"trainer: steps a second of mmzoo.train / a plain loop ({settings.steps} steps)"
    return [Ratio(name, *speeds, "steps/s", TARGET, higher=True, sides=("mmzoo.train", "plain loop"))]


def _mmzoo(steps: int) -> tuple[float, float]:
    """Return the seconds from the end of the first step to the end of the last, and the last logged loss."""
    import mmzoo

    with step_times() as times, tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"max_steps": steps, "precision": "fp32", "workers": 0, "log_every": LOGGED}
        done = mmzoo.train(RECIPE, dataset=DATASET, output=Path(folder, "model"), progress=False, training=options)
    return times[-1] - times[1], done.history[-1]["loss"]


def _loop(examples: Sequence[Any], steps: int) -> tuple[float, float]:
    """Train by hand, and return the same as `_mmzoo`."""
    import torch
    from torch.utils.data import DataLoader

    import mmzoo
    from mmzoo.data.collate import tensors
    from mmzoo.recipes.reading import read_recipe
    from mmzoo.training.data import learn
    from mmzoo.training.optimization import rate_at
    from mmzoo.training.sampling import Shuffled  # so that both sides see the same batches, at the same rates

    recipe = learn(read_recipe(RECIPE), examples)
    options = recipe.training
    model = mmzoo.build(recipe, seed=options.seed)
    together = "image" if options.keep_images_together else ""
    epochs = itertools.count()
    shuffled = Shuffled(examples, options.seed, together, lambda: next(epochs))
    order = [0] * len(examples)  # of the epoch
    loader = DataLoader(
        examples,  # type: ignore[arg-type]
        batch_size=options.batch_size,
        sampler=order,
        collate_fn=model.collator(training=True),
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)
    rate = rate_at(options.schedule, math.ceil(options.warmup * steps), steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    losses: list[float] = []
    ends: list[float] = []
    step = 0
    while step < steps:
        order[:] = [position % len(examples) for position in shuffled]
        for batch in loader:
            loss = model(**tensors(batch, model.device))["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, options.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            ends.append(time.perf_counter())
            step += 1
            if step == steps:
                break
    last = steps // LOGGED * LOGGED
    return ends[-1] - ends[0], sum(losses[last - LOGGED : last]) / LOGGED
