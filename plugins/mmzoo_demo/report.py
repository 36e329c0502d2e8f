"""Write the report: one HTML page that needs no other file."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from mmzoo.api import Example, Prediction, input_key

WRONG, RIGHT = 12, 12
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
PHASES = {"train": "training", "train_blind": "training blind", "measure": "measuring", "reload": "reloading"}
# matplotlib writes colours into the picture; the page replaces these by its own, which suit light and dark themes.
INK, MAIN, CONTROL = "#010203", "#040506", "#070809"


@dataclass(frozen=True)
class Gallery:
    """Hold the rows of the split whose answers are shown, ``wrong`` and ``right``, and how many wrong ones there are in all."""

    wrong: list[int]
    right: list[int]
    all_wrong: int


def choose(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Gallery:
    """Choose the wrong answers of which the model was surest, and right ones from each kind of question in turn.

    Each right one is about another picture and, as long as there are any, has another answer.
    """
    wrong = [i for i, (e, p) in enumerate(zip(examples, predictions, strict=True)) if p.label not in e.targets]
    missed = set(wrong)
    kinds: dict[str, list[int]] = {name: [] for name in ("colour", "shape", "yes", "no")}
    for i, example in enumerate(examples):
        if i not in missed:
            kinds.setdefault(_kind(example), []).append(i)
    right: list[int] = []
    pictures: set[Any] = set()
    answers: dict[str, set[str | None]] = {kind: set() for kind in kinds}
    while len(right) < RIGHT and any(kinds.values()):
        for kind, places in kinds.items():
            if not places or len(right) == RIGHT:
                continue
            best = min(
                places,
                key=lambda i, shown=answers[kind]: (
                    input_key(examples[i].image) in pictures,
                    predictions[i].label in shown,
                    i,
                ),
            )
            places.remove(best)
            right.append(best)
            pictures.add(input_key(examples[best].image))
            answers[kind].add(predictions[best].label)
    surest = sorted(wrong, key=lambda i: (-(predictions[i].score or 0.0), i))[:WRONG]
    return Gallery(surest, right, len(wrong))


def _kind(example: Example) -> str:
    truth = example.targets[0]
    return "colour" if truth in COLOURS else "shape" if truth in SHAPES else truth


def render(
    record: Mapping[str, Any],
    gallery: Gallery,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    *,
    training: Mapping[str, Mapping[str, Any]],
    recipe: Mapping[str, Any],
    summary: str,
) -> str:
    """Return the page."""
    described = describe(examples)

    def card(i: int) -> dict[str, Any]:
        example, prediction = examples[i], predictions[i]
        content = Path(example.image).read_bytes()
        return {
            "picture": f"data:image/png;base64,{base64.b64encode(content).decode()}",
            "alt": described[input_key(example.image)],
            "question": example.text,
            "answer": prediction.label,
            "truth": example.targets[0],
            "confidence": None if prediction.score is None else f"{prediction.score:.1%}",
            "right": prediction.label in example.targets,
        }

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        record=record,
        gallery=gallery,
        wrong=[card(i) for i in gallery.wrong],
        right=[card(i) for i in gallery.right],
        rows=_rows(record),
        curve=Markup(curve({role: run["history"] for role, run in training.items()}, training["model"].get("validation"))),
        training=training,
        phases=PHASES,
        recipe=yaml.safe_dump(_short(recipe), sort_keys=False, allow_unicode=True, width=100),
        summary=summary,
    )


def _rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = {
        "model": ("The model", ""),
        "shuffled": ("The model, images shuffled", "each question asked of another picture"),
        "blanked": ("The model, images blanked", "each question asked of no picture"),
        "blind": ("The same recipe, trained blind", "it never had a picture, only questions"),
        "majority": (f"Always “{record['commonest']}”", "the commonest training answer"),
    }
    return [{"name": name, "note": note, **record["scores"][key]} for key, (name, note) in names.items()]


def _short(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe without what training learned from the data."""
    learned = ("vocabulary", "labels")
    return {
        key: {k: v for k, v in value.items() if k not in learned} if isinstance(value, Mapping) else value
        for key, value in recipe.items()
    }


def describe(examples: Sequence[Example]) -> dict[Any, str]:
    """Return what is on each picture, in words, as far as the questions and true answers about it say."""
    words: dict[Any, set[str]] = {}
    for example in examples:
        known = words.setdefault(input_key(example.image), set())
        if _kind(example) in ("colour", "shape"):  # what such a question names is on the picture
            known.update(re.findall(r"\w+", example.text), example.targets)
    descriptions = {}
    for key, known in words.items():
        colour = next((word for word in COLOURS if word in known), "coloured")
        shape = next((word for word in SHAPES if word in known), "shape")
        descriptions[key] = f"Test picture {Path(str(key)).stem}: a {colour} {shape}"
    return descriptions


def curve(histories: Mapping[str, Sequence[Mapping[str, float]]], validation: Mapping[str, Any] | None = None) -> str:
    """Return the training losses, and the model's validation scores, as an SVG element without anything to be fetched."""
    styles = {"model": ("the model", MAIN, "-"), "blind": ("trained blind", CONTROL, "--")}
    with rc_context({"svg.hashsalt": "mmzoo", "svg.fonttype": "path", "font.size": 10}):
        figure = Figure(figsize=(9.0, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for role, (label, colour, line) in styles.items():
            points = histories[role]
            steps, losses = [p["step"] for p in points], [p["loss"] for p in points]
            axes.plot(steps, losses, color=colour, linestyle=line, linewidth=1.8, label=label)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel("training loss (cross-entropy)", color=INK)
        axes.tick_params(which="both", colors=INK)
        axes.spines[:].set_color(INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, color=INK, alpha=0.15, linewidth=0.6)
        lines = list(axes.get_lines())
        if validation:
            lines += _validated(axes, validation)
        axes.legend(handles=lines, frameon=False, labelcolor=INK, loc="center right")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", head)
    text = f'{head} aria-hidden="true" focusable="false">{rest}'.replace("*{", "svg *{")
    for marker, variable in ((INK, "currentColor"), (MAIN, "var(--main)"), (CONTROL, "var(--control)")):
        text = text.replace(marker, variable)
    return text


def _validated(axes: Any, validation: Mapping[str, Any]) -> list[Any]:
    """Draw the validation scores on an axis at the right, the best one marked, and return their line."""
    metric, best = validation["metric"], validation["best"]
    right = axes.twinx()
    scores = [(entry["step"], entry["scores"][metric]) for entry in validation["history"]]
    points = [(step, score) for step, score in scores if score is not None]
    style = {"color": MAIN, "linestyle": ":", "marker": "o", "markersize": 3, "linewidth": 1.4}
    lines = right.plot(*zip(*points, strict=True), label=f"the model, validation {metric}", **style) if points else []
    if best:
        right.plot(best["step"], best["score"], marker="o", markersize=8, markerfacecolor="none", color=MAIN)
    right.set_ylabel(f"validation {metric}", color=INK)
    right.tick_params(colors=INK)
    right.spines[:].set_color(INK)
    right.spines[["top", "left"]].set_visible(False)
    return list(lines)
