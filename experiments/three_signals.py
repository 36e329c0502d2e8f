"""Show that a model with a text, a picture and a sound uses all three, on data that no two of them decide."""

from __future__ import annotations

from typing import Any

from experiments.common import Experiment, Model

ENCODERS: dict[str, Any] = {
    "image": {"use": "cnn", "image_size": 32, "channels": [32, 64, 128]},
    "audio": {"use": "log-mel-gru", "mels": 32, "dim": 64},
}
# What each input says by itself is a task too: the parity of the sentiment alone has no gradient at first, so nothing is learned.
SIGNALS = {"text": "remark", "image": "face", "audio": "voice"}
TRAIN = {"learning_rate": 2e-3, "batch_size": 128, "epochs": 4, "weight_decay": 0.01}
DATA = {"use": "three-signals", "train_size": 4000}
EACH = ("missing:image", "missing:audio", "blanked:text", "shuffled:image", "shuffled:audio", "shuffled:text")


def _recipe(*inputs: str, fusion: str = "tensor-fusion", alone: bool = False) -> dict[str, Any]:
    signals = {} if alone else {SIGNALS[name]: {"use": "classify", "weight": 0.5} for name in inputs}
    return {
        "encoders": {name: ENCODERS[name] for name in inputs if name in ENCODERS},
        "fusion": fusion,
        "language_model": {"use": "lstm", "dim": 64},
        "tasks": {"sentiment": {"use": "classify", "hidden": 64}, **signals},
        "training": TRAIN,
    }


SCORES = {"accuracy": "sentiment/accuracy"}
ALL = ("text", "image", "audio")


EXPERIMENT = Experiment(
    name="three-signals",
    title="Three signals: sentiment that needs text, picture and sound",
    about="""`three-signals` is made by code: a sentence praises or complains, a face smiles or frowns, a tone rises or falls,
and the sentiment is positive if an even number of the three is unfriendly. Any two of them say nothing about it, so
without the third no model can do better than chance, 0.5. The same encoders are fused by the outer product of all
three (tensor fusion), and one after the other. What each input says by itself is a
second task with half the weight; without these tasks the sentiment is not learned in this time, because its parity has
no gradient at first. Each pair of inputs is trained alone with its own tasks (the pair without a text gets empty texts).""",
    dataset=DATA,
    split="test",
    metrics=("accuracy",),
    seeds=(0,),
    models=(
        *(
            Model(fusion, f"all three, {fusion}", _recipe(*ALL, fusion=fusion), scores=SCORES, each=EACH)
            for fusion in ("tensor-fusion", "late-concat")
        ),
        Model("text-image", "text and picture", _recipe("text", "image", fusion="late-concat"), scores=SCORES),
        Model("text-audio", "text and sound", _recipe("text", "audio", fusion="late-concat"), scores=SCORES),
        Model(
            "image-audio",
            "picture and sound",
            _recipe("image", "audio"),
            dataset={**DATA, "without_text": True},
            scores=SCORES,
            each=("shuffled:image", "shuffled:audio"),
        ),
        Model("sentiment-only", "all three, tensor-fusion, no other task", _recipe(*ALL, alone=True)),
    ),
)
