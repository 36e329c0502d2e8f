"""Answer questions and write captions with one model, beside a model for each."""

from __future__ import annotations

from typing import Any

from experiments.common import Experiment, Model

DATASETS = {"caption": "openmoji", "vqa": "easy-vqa"}
VALIDATION = {"caption": "openmoji:validation"}  # easy-VQA has none
TASKS: dict[str, dict[str, Any]] = {
    "caption": {"use": "caption", "max_new_tokens": 24},
    "vqa": {"use": "classify", "hidden": 256, "dropout": 0.3, "weight": 2},  # else the captions' gradients are much the larger
}
TRAIN = {"learning_rate": 2e-3, "weight_decay": 0.05, "max_steps": 1500, "save_every": 250, "keep_images_together": True}
VALIDATE = {"evaluate_every": 250, "metric": "cider-d"}
# A step of the model for both tasks has as many examples of each, in the mean, as a step of the models for one.
BATCH = {"caption": 51, "vqa": 205}
WEIGHTS = {"caption": 0.2, "vqa": 0.8}
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
            "training": {
                **TRAIN,
                **(VALIDATE if "caption" in tasks else {}),
                "batch_size": sum(BATCH[task] for task in tasks),
            },
            **({"data": {"weights": WEIGHTS}} if len(tasks) > 1 else {}),
        },
        datasets={task: DATASETS[task] for task in tasks},
        validation={task: split for task, split in VALIDATION.items() if task in tasks} or None,
        scores={metric: metric for metric in SCORES if metric.partition("/")[0] in tasks},
    )


EXPERIMENT = Experiment(
    name="two-in-one",
    title="Questions and captions in one model",
    about="""One model answers easy-VQA's questions and names OpenMoji's pictures, with one convolutional network and one LSTM
for both, trained from scratch on both data sets at once. It is compared with a model for each task, of the same parts and
as many steps: a step of the one model has the examples of both others' steps, 51 captions and 205 questions in the mean. The
questions are answered by a classifier on the fused state; the captions are written. The test split of OpenMoji has
combinations of concept, gender and skin tone that are not in training. Captions choose the step whose weights are kept, by
CIDEr-D on OpenMoji's validation split; easy-VQA has none.""",
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
