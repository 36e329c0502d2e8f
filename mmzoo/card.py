"""The model card: Markdown with metadata, rendered from the recipe and the recorded runs, and from nothing else."""

from __future__ import annotations

import importlib.resources
from typing import Any

import jinja2
import yaml

from mmzoo import screening
from mmzoo.inputs import plural
from mmzoo.recipe import Recipe
from mmzoo.summary import Summary, count, size

TEMPLATE = "card.md.j2"
SAMPLES = {"image": "picture.png", "audio": "clip.wav"}


def render(
    recipe: Recipe,
    summary: Summary,
    run: dict[str, Any],
    *,
    generates: bool = False,
    modality: str = "image",
    folder: str = "",
    sections: list[tuple[str, str]] | None = None,
) -> str:
    """Markdown with YAML metadata. A number that no run recorded is not in it. ``folder`` is where the model can be loaded
    from; without one the card is a recipe's."""
    training = run.get("training")
    evaluations = run.get("evaluations", [])
    text = (importlib.resources.files("mmzoo") / TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True, trim_blocks=True
    )
    data = recipe.to_dict()
    rendered = environment.from_string(text).render(
        metadata=yaml.safe_dump(_metadata(recipe, training, evaluations), sort_keys=False, allow_unicode=True),
        name=recipe.name or "unnamed",
        recipe=recipe,
        folder=folder,
        summary=summary,
        count=count,
        size=size,
        interval=_interval,
        training=training,
        weights=run.get("weights", {}),
        versions=", ".join(f"{k} {v}" for k, v in training["versions"].items()) if training else "",
        evaluations=evaluations,
        recipe_yaml=yaml.safe_dump(_short(data), sort_keys=False, allow_unicode=True, width=110),
        generates=generates,
        given=f'{modality}="{SAMPLES[modality]}", ',
        modality=modality,
        inputs=plural(modality),
        sections=sections or [],
    )
    return screening.inert(rendered)


def _interval(score: dict[str, float]) -> str:
    return f"{score['value']:.4f} [{score['low']:.4f}, {score['high']:.4f}]"


def _short(value: Any) -> Any:
    """Lists of many words, such as a vocabulary, cut for the reader; the whole stands in mmzoo.json."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list) and len(value) > 20:
        return [*value[:8], f"... {len(value) - 8} more"]
    return value


def _metadata(recipe: Recipe, training: dict[str, Any] | None, evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """The YAML that a hub reads; scores as ``model-index``."""
    found: dict[str, Any] = {"library_name": "mmzoo", "tags": ["mmzoo", "multimodal"]}
    found["tags"] += sorted({f"mmzoo-{kind.replace('_', '-')}:{part.use}" for kind, part in recipe.parts().items()})
    if training:
        found["datasets"] = [training["dataset"]]
    if evaluations:
        found["model-index"] = [
            {
                "name": recipe.name or "unnamed",
                "results": [
                    {
                        "task": {"type": recipe.task.use},
                        "dataset": {"name": e["dataset"], "type": e["dataset"], "split": e["split"]},
                        "metrics": [{"type": name, "value": score["value"]} for name, score in e["scores"].items()],
                    }
                    for e in evaluations
                ],
            }
        ]
    return found
