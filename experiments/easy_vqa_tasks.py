"""Train one model for three tasks on the same pictures, beside a model for each."""

from __future__ import annotations

from typing import Any

from experiments.common import Experiment, Model

TASKS: dict[str, dict[str, Any]] = {
    "answer": {"use": "classify", "hidden": 256, "dropout": 0.3},
    "shape": {"use": "classify", "hidden": 256},
    "position": {"use": "regress", "hidden": 256},
}
SCORES = {
    "answer accuracy": ("answer", "accuracy"),
    "shape accuracy": ("shape", "accuracy"),
    "position R2": ("position", "r2"),
    "position MAE": ("position", "mae"),
}
TRAIN = {
    "learning_rate": 2e-3,
    "batch_size": 256,
    "epochs": 5,
    "weight_decay": 0.1,
    "keep_images_together": True,
}


def _recipe(*names: str) -> dict[str, Any]:
    return {
        "encoder": "cnn",
        "fusion": "late-product",
        "language_model": "lstm",
        "tasks": {name: TASKS[name] for name in names},
        "training": TRAIN,
    }


def _model(name: str) -> Model:
    scores = {title: metric for title, (task, metric) in SCORES.items() if task == name}
    return Model(name, f"{name} alone", _recipe(name), scores=scores)


EXPERIMENT = Experiment(
    name="easy-vqa-tasks",
    title="easy-VQA: three tasks in one model",
    about="""One model answers easy-VQA's questions, names the shape in the picture and says where its middle is (two numbers from
0 to 1). The encoder runs once for the three tasks, and so does the language model, because they read the same
question. It is compared with a model for each task, of the same parts and training. Shape and position are read from
the pixels of the data set's pictures, which agree with all its questions.""",
    dataset="easy-vqa",
    split="test",
    metrics=tuple(SCORES),
    seeds=(0,),
    models=(
        Model(
            "together",
            "all three",
            _recipe(*TASKS),
            scores={title: f"{task}/{metric}" for title, (task, metric) in SCORES.items()},
        ),
        *map(_model, TASKS),
    ),
)
