"""Train pictures and names of OpenMoji to find each other: CLIP's two towers, from scratch and in the small."""

from __future__ import annotations

from typing import Any

from experiments.common import Experiment, Model

TRAIN = {"learning_rate": 1e-3, "batch_size": 256, "epochs": 30, "weight_decay": 0.1, "warmup": 0.05}


def _recipe(language_model: dict[str, Any], **task: Any) -> dict[str, Any]:
    return {
        "encoder": {"use": "cnn", "image_size": 64, "channels": [32, 64, 128, 256]},
        "fusion": "none",
        "language_model": language_model,
        "task": {"use": "contrastive", "dim": 128, **task},
        "training": TRAIN,
    }


BAG = {"use": "bag-of-words", "dim": 128}
EXPERIMENT = Experiment(
    name="openmoji-pairs",
    title="OpenMoji: pictures find their names",
    about="""A convolutional network and a text tower are trained from scratch with a contrastive loss on the pictures and
names of `openmoji`. The test split's combinations of concept, gender and skin tone are not in training, but
each of their parts is. Each picture looks for its name among all names of the test split, and each name for its
picture; names that are equal count as one. With shuffled pictures the score is that of chance.""",
    dataset="openmoji",
    split="test",
    metrics=("recall-at-1", "recall-at-10", "text-recall-at-1", "text-recall-at-10", "mrr"),
    seeds=(0,),
    models=(Model("infonce-bag", "InfoNCE, bag of words", _recipe(BAG)),),
)
