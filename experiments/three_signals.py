"""Show that a model with a text, a picture and a sound uses all three, on data that no two of them decide."""

from __future__ import annotations

from typing import Any

from experiments.common import Experiment, Model

ENCODERS = {"image": {"use": "cnn", "image_size": 32, "channels": [32, 64, 128]}, "audio": "log-mel-gru"}
TASK = {"sentiment": {"use": "classify"}}
TRAIN = {"learning_rate": 2e-3, "batch_size": 128, "epochs": 8, "weight_decay": 0.01}
EACH = ("shuffled:image", "shuffled:audio", "shuffled:text", "missing:image", "missing:audio", "blanked:text")


def _recipe(names: tuple[str, ...], fusion: str, **training: Any) -> dict[str, Any]:
    return {
        "encoders": {name: ENCODERS[name] for name in names},
        "fusion": fusion,
        "language_model": "lstm",
        "tasks": TASK,
        "training": {**TRAIN, **training},
    }


EXPERIMENT = Experiment(
    name="three-signals",
    title="Three signals: sentiment that needs text, picture and sound",
    about="""`three-signals` is made by code: a sentence praises or complains, a face smiles or frowns, a tone rises or falls, and
the sentiment is positive if an even number of the three is unfriendly. Any two of them say nothing about it, so
without the third no model can do better than chance, 0.5. The same encoders are fused by the outer product of all
three (tensor fusion), by its low-rank form, by gates and one after the other; then each pair of inputs is trained
alone (the pair without a text gets empty texts).""",
    dataset="three-signals",
    split="test",
    metrics=("accuracy",),
    seeds=(0,),
    models=(
        Model(
            "tensor", "all three, tensor-fusion", _recipe(("image", "audio"), "tensor-fusion", modality_dropout=0.05), each=EACH
        ),
        Model("low-rank", "all three, low-rank-fusion", _recipe(("image", "audio"), "low-rank-fusion"), each=EACH),
        Model("gated", "all three, gated", _recipe(("image", "audio"), "gated"), each=EACH),
        Model("late-concat", "all three, late-concat for each", _recipe(("image", "audio"), "late-concat"), each=EACH),
        Model("text-image", "text and picture", _recipe(("image",), "late-concat")),
        Model("text-audio", "text and sound", _recipe(("audio",), "late-concat")),
        Model(
            "image-audio",
            "picture and sound",
            _recipe(("image", "audio"), "tensor-fusion"),
            dataset={"use": "three-signals", "without_text": True},
            each=("shuffled:image", "shuffled:audio"),
        ),
    ),
)
