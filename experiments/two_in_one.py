"""Answer questions and write captions with one model, beside a model for each."""

from __future__ import annotations

from typing import Any

from experiments.common import Experiment, Model

DATASETS = {"caption": "openmoji", "vqa": "easy-vqa"}
# easy-VQA has no validation split: a tenth of its training pictures is held out.
VALIDATION = {"caption": "openmoji:validation"}
TASKS: dict[str, dict[str, Any]] = {
    "caption": {"use": "caption", "max_new_tokens": 24},
    "vqa": {"use": "classify", "hidden": 256, "dropout": 0.3},
}
TRAIN = {"learning_rate": 2e-3, "weight_decay": 0.05, "keep_images_together": True, "epochs": 16}
BATCH = {"caption": 24, "vqa": 232, "both": 256}  # of all pictures in both data sets, so many are in a step
SCORES = ("vqa/accuracy", "caption/exact-match", "caption/bleu-4", "caption/rouge-l", "caption/cider-d")


def _model(name: str, label: str, *tasks: str) -> Model:
    return Model(
        name,
        label,
        {
            "encoder": {"use": "cnn", "channels": [32, 64, 128, 256]},
            "fusion": "late-product",
            "language_model": {"use": "lstm", "dim": 256, "verbatim": True},
            "tasks": {task: TASKS[task] for task in tasks},
            "training": {**TRAIN, "batch_size": BATCH[tasks[0] if len(tasks) == 1 else "both"]},
        },
        datasets={task: DATASETS[task] for task in tasks},
        validation={task: split for task, split in VALIDATION.items() if task in tasks} or None,
        scores={metric: metric for metric in SCORES if metric.partition("/")[0] in tasks},
    )


EXPERIMENT = Experiment(
    name="two-in-one",
    title="Questions and captions in one model",
    about="""One model answers easy-VQA's questions and names OpenMoji's pictures, with one convolutional network and one LSTM
for both, trained from scratch on both data sets at once. It is compared with a model for each task, of the same parts, which
sees the same examples as often. The questions are answered by a classifier on the fused state; the captions are written. The
test split of OpenMoji has combinations of concept, gender and skin tone that are not in training.""",
    dataset="openmoji",
    split="test",
    metrics=SCORES,
    seeds=(0,),
    models=(
        _model("both", "both in one", "caption", "vqa"),
        _model("caption", "captions alone", "caption"),
        _model("vqa", "questions alone", "vqa"),
    ),
)
