"""Render model cards: Markdown with metadata, from the recipe and the recorded runs only."""

from __future__ import annotations

import functools
import importlib.resources
import math
import re
from collections.abc import Sequence
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData

from mmzoo.checkpoints import screening
from mmzoo.checkpoints.record import EvaluationRecord, RunRecord, ScoreRecord, TrainingRecord, control_title
from mmzoo.checkpoints.summary import Summary, format_bytes, format_count
from mmzoo.interfaces.kinds import kind_of
from mmzoo.modalities.reader import plural
from mmzoo.recipes import licence
from mmzoo.recipes.schema import Recipe
from mmzoo.registry.entries import split_use

TEMPLATE = "card.md.j2"
SAMPLES = {"image": "picture.png", "audio": "clip.wav", "video": "clip.mp4"}
HERE = "path/to/this/folder"  # what a card loads until the model is pushed
_LOADED = re.compile(r'^(model = mmzoo\.load\("|`mmzoo verify )[^"`\n]*(?=[`"])', re.M)
_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def render(
    recipe: Recipe,
    summary: Summary,
    run: dict[str, Any],
    *,
    generates: bool = False,
    modalities: Sequence[str] = ("image",),
    folder: str = "",
    sections: list[tuple[str, str]] | None = None,
) -> str:
    """Return the card of a model as Markdown with YAML metadata. It contains only numbers that a run recorded.

    Args:
        recipe, summary, modalities: of the model; the modalities are those of its encoders' inputs.
        run: the contents of run.json; a `pydantic.ValidationError` is raised if they are not valid.
        generates: whether the model writes text, for the example of its use.
        folder: where the model can be loaded from; empty for the card of a recipe.
        sections: titles and Markdown texts to add at the end.
    """
    record = RunRecord.model_validate(run)
    training, evaluations = record.training, record.evaluations
    licences = licence.of_model(recipe, run)
    rendered = _template().render(
        metadata=yaml.safe_dump(
            _metadata(recipe, record, licences if folder or training else [], modalities), sort_keys=False, allow_unicode=True
        ),
        name=recipe.name or "unnamed",
        recipe=recipe,
        folder=folder,
        summary=summary,
        licences=licences,
        count=format_count,
        size=format_bytes,
        interval=_interval,
        energy=_energy,
        options=_options,
        training=training,
        augmentations={
            modality: [each if isinstance(each, str) else str(each.get("use")) for each in several]
            for modality, several in recipe.data.augment.items()
        },
        weights=record.weights,
        evaluations=evaluations,
        sampled=next((e for e in evaluations if e.samples), None),
        recipe_yaml=yaml.safe_dump(_short(recipe.to_dict(short=True)), sort_keys=False, allow_unicode=True, width=110),
        generates=generates,
        example_input="".join(f'{m}="{SAMPLES[m]}", ' if m in SAMPLES else f"{m}=..., " for m in modalities),
        inputs=" and ".join(map(plural, modalities)),
        input=" or ".join(modalities),
        title=lambda control: control_title(control, modalities),
        sections=sections or [],
    )
    return screening.inert(rendered)


@functools.cache
def _template() -> jinja2.Template:
    text = (importlib.resources.files("mmzoo.checkpoints") / TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True, trim_blocks=True
    )
    environment.filters["cell"] = cell
    return environment.from_string(text)


def addressed(text: str, repo: str) -> str:
    """Return a card whose examples load the model from ``repo``. Other text is unchanged, since people may have edited it."""
    return _LOADED.sub(lambda match: f"{match[1]}{repo}", text)


def _interval(score: ScoreRecord) -> str:
    return f"{score.value:.4f} [{score.low:.4f}, {score.high:.4f}]"


def _energy(run: TrainingRecord | EvaluationRecord) -> str:
    if run.energy is None:
        return "not measured"
    return f"{run.energy.kwh:.3g} kWh, measured on {' and '.join(run.energy.measured)}"


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def cell(text: str) -> str:
    """Return text for a cell of a Markdown table: on one line, with markup escaped."""
    text = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]|~#])", r"\\\1", text).replace("<", "&lt;")


def _short(value: Any) -> Any:
    """Shorten long lists, such as vocabularies. They are complete in mmzoo.json."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list) and len(value) > 20:
        return [*value[:8], f"... {len(value) - 8} more"]
    return value


def _metadata(recipe: Recipe, record: RunRecord, licences: list[licence.LicenceRow], modalities: Sequence[str]) -> dict[str, Any]:
    """Return the metadata of a card: https://github.com/huggingface/hub-docs/blob/main/modelcard.md (scores: ``model-index``)."""
    parts = sorted({f"mmzoo-{kind_of(key).replace('_', '-')}:{part.use}" for key, part in recipe.parts().items()})
    shared = record.training is not None and not record.training.local and _ID.fullmatch(record.training.dataset)
    results = [result for evaluation in record.evaluations for result in _results(recipe, evaluation, modalities)]
    data = ModelCardData(
        library_name="mmzoo",
        tags=["mmzoo", "multimodal", *parts],
        **(licence.on_hub(licences) if licences else {}),  # type: ignore[arg-type]
        datasets=[record.training.dataset] if record.training and shared else None,
        model_name=recipe.name or "unnamed",
        eval_results=results or None,
    )
    return {key: value for key, value in data.to_dict().items() if results or key != "model_name"}


def _results(recipe: Recipe, evaluation: EvaluationRecord, modalities: Sequence[str]) -> list[EvalResult]:
    """Return each score, followed by the same score under each control.

    The Hub shows only name and value of a result, so the name contains the interval; ``metric_args`` has it for programs.
    """
    options = "".join(f", {key}={value}" for key, value in evaluation.options.items())
    limit = f"the first {evaluation.examples} examples" if evaluation.limit is not None else ""
    conditions = {"": evaluation.scores, **evaluation.controls}
    return [
        EvalResult(
            task_type=_task_of(recipe, metric),
            dataset_type=evaluation.dataset if _ID.fullmatch(evaluation.dataset) else "other",
            dataset_name=evaluation.dataset,
            dataset_config=", ".join(filter(None, [_options(evaluation.dataset_options), limit])) or None,
            dataset_split=evaluation.split,
            dataset_args={"examples": evaluation.examples, "fingerprint": evaluation.fingerprint},
            metric_type=metric,
            metric_value=score.value,
            metric_name=f"{metric}{f' with {control_title(control, modalities)}' if control else ''}{options} "
            f"(95% interval {score.low:.4f} to {score.high:.4f})",
            metric_args={"low": score.low, "high": score.high, **({"control": control} if control else {})},
        )
        for metric in evaluation.scores
        for control, scores in conditions.items()
        if (score := scores.get(metric)) is not None and math.isfinite(score.value)
    ]


def _task_of(recipe: Recipe, metric: str) -> str:
    """Return the entry of the task that a score belongs to."""
    task = recipe.tasks.get(metric.partition("/")[0]) or next(iter(recipe.tasks.values()))
    return split_use(task.use)[0]
