"""Train small models one after another, in one process or several: ``accelerate launch -m tests.helpers.processes JOBS``."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image

import mmzoo
from mmzoo.data.dataset import Dataset
from mmzoo.interfaces import Example
from mmzoo.recipes.reading import read_recipe
from mmzoo.testing import Sample, tiny
from mmzoo.training.callbacks import StopOnSignal
from mmzoo_tasks import contrastive

COUNT = 18  # examples; two processes with batches of two have no example for one batch of the last step
TASKS = {"colour": "classify", "answer": "vqa", "pair": {"use": "contrastive", "target": "colour", "encoder": "image"}}
ON_STEP_END = StopOnSignal.on_step_end


class Given(Dataset):
    def __init__(self, examples):
        super().__init__(None)
        self.examples = list(examples)

    def splits(self):
        return ["train"]

    def load(self, split):
        return self.examples


class Streamed(Given):
    def load(self, split):
        return self

    def __iter__(self):
        return iter(self.examples)


def noise():
    """Examples with pictures of noise: of plain squares the first layer has gradients that are rounding errors."""
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(COUNT)]
    return [replace(e, inputs={**e.inputs, "image": p}) for e, p in zip(Sample(COUNT).load("train"), pictures, strict=True)]


def sparse():
    """Examples of which only some have a picture, a sound or an answer; batches of two, of either process, have none."""
    examples = []
    for i, example in enumerate(noise()):
        image = None if i in (2, 3, 4, 5, 6, 7, 8, 9) else example.image
        audio = None if i in (0, 1, 4, 5, 6, 7, 10) else example.audio
        answer = (f"it is {example.targets[0]}",) if i in (1, 4, 12) else ()
        examples.append(Example(str(i), image, example.text, {"colour": example.targets, "answer": answer}, audio=audio))
    return Given(examples)


def damaged():
    """Examples of which those of some batches cannot be read: of one process, of the other, and of both."""
    examples = noise()
    return Given(
        Example(e.id, "missing.png" if i in (2, 3, 4, 5, 8, 9, 10, 11) else e.image, e.text, e.targets)
        for i, e in enumerate(examples)
    )


def several():
    """Trained and frozen towers; blocks of transformers' classes, which shards have as units."""
    encoders = {"image": {"use": "hf-vision", "train": "full"}, "audio": {"use": "log-mel-gru"}}
    parts = {
        "encoders": encoders,
        "fusion": "prefix-mlp",
        "language_model": "gpt-mini",
        "tasks": {k: TASKS[k] for k in ("colour", "answer")},
    }
    return tiny(mmzoo.Recipe.of(parts))


def of(fusion):
    return tiny(mmzoo.Recipe.of({"encoder": "cnn", "fusion": fusion, "language_model": "gpt-mini", "task": "vqa"}))


def numbers():
    """Several numbers, of which some are missing, beside several labels."""
    tasks = {"amount": {"use": "regress", "target": "amount"}, "several": {"use": "multi-label", "target": "several"}}
    parts = {"encoder": {"use": "cnn", "train": "full"}, "fusion": "late-concat", "language_model": "lstm"}
    return tiny(mmzoo.Recipe.of({**parts, "tasks": tasks}))


def numbered():
    """Examples of which only some have numbers, or labels; batches of either process have neither."""
    examples = []
    for i, example in enumerate(noise()):
        targets = {
            "amount": (str(i / 9),) if i in (0, 1, 4, 9) else (),
            "several": ("a", "b")[: 1 + i % 2] if i in (2, 3, 9) else (),
        }
        examples.append(Example(str(i), example.image, example.text, targets))
    return Given(examples)


def bounded():
    """Pairs whose scale begins beyond its bound."""
    contrastive.START["infonce"] = (5.0, 0.0)
    return tiny("cnn-prefix-gpt", task=PAIRS)


def q_former():
    """Without dropout, whose random numbers are of each process."""
    return read_recipe(of("q-former"), fusion={"dropout": 0.0})


PAIRS = {"use": "contrastive"}
CASES = {
    "plain": (lambda: tiny("cnn-prefix-gpt"), lambda: Given(noise())),
    "stream": (lambda: tiny("cnn-prefix-gpt"), lambda: Streamed(noise())),
    "several": (several, sparse),
    "lora": (
        lambda: tiny("cnn-prefix-gpt", encoder={"train": "frozen"}, language_model={"train": "lora:2"}),
        lambda: Given(noise()),
    ),
    "cross": (lambda: of("cross-attention"), lambda: Given(noise())),
    "pairs": (lambda: tiny("cnn-prefix-gpt", task=PAIRS), lambda: Given(noise())),
    "bounded-pairs": (bounded, lambda: Given(noise())),
    "numbers": (numbers, numbered),
    "q-former": (q_former, lambda: Given(noise())),
    "dropout": (
        lambda: tiny("cnn-product-lstm", task={"use": "classify", "dropout": 0.3}, encoder={"train": "full"}),
        lambda: Given(noise()),
    ),
    "skipped": (lambda: tiny("cnn-prefix-gpt"), damaged),
    "skipped-pairs": (lambda: tiny("cnn-prefix-gpt", task=PAIRS), damaged),
}
OPTIONS = {"batch_size": 2, "epochs": 1, "log_every": 1, "learning_rate": 1e-3, "precision": "fp32", "workers": 0}


def train(job):
    """Train one job in all processes, and print its curve in the main one."""
    AcceleratorState._reset_state(reset_partial_state=True)

    def stopping(self, args, state, control, **more):
        if state.global_step == job.get("stop"):
            self.signal = int(signal.SIGTERM)
        ON_STEP_END(self, args, state, control, **more)

    StopOnSignal.on_step_end = stopping
    recipe, data = (make() for make in CASES[job["case"]])
    run = mmzoo.train(
        recipe,
        dataset=data,
        output=job["output"],
        training={**OPTIONS, "keep_images_together": False, **job["options"]},
        resume=job.get("resume", False),
        skip_bad=True,
        progress=False,
    )
    if os.environ.get("RANK", "0") != "0":  # the main process has a whole copy
        assert any(hasattr(own, "placements") for own in run.model.parameters()) == ("ACCELERATE_USE_FSDP" in os.environ)
    else:
        print(json.dumps({"history": run.history, "skipped": sorted(name for name, _ in run.skipped)}), flush=True)


if __name__ == "__main__":
    torch.randperm = lambda count, generator=None: torch.arange(count)
    for each in json.loads(Path(sys.argv[1]).read_text()):
        train(each)
