"""The model card: Markdown with metadata, rendered from the recipe and the recorded runs, and from nothing else."""

from __future__ import annotations

from typing import Any

import jinja2
import yaml

from mmzoo.recipe import Recipe
from mmzoo.summary import Summary, count, size

TEMPLATE = """\
---
{{ metadata }}---

# {{ name }}

{{ recipe.summary or "A multimodal model built with mmzoo." }}
{% if recipe.source %}
It follows {{ recipe.source }}.
{% endif %}
## How to use it

```python
import mmzoo

model = {{ "mmzoo.load(FOLDER)" if run else 'mmzoo.build("' ~ name ~ '")' }}
print({{ 'model.generate(image="picture.png", prompt="...")' if generates else 'model.predict(image="picture.png", text="...").label' }})
```

## What it is made of

| part | entry | shape | parameters | trained | policy | licence |
|---|---|---|---|---|---|---|
{% for part in summary.parts -%}
| {{ part.part.replace("_", " ") }} | `{{ part.use }}` | {{ part.shape }} | {{ count(part.parameters) }} | {{ count(part.trained) }} | {{ part.policy }} | {{ part.license }} |
{% endfor -%}
| total | | | {{ count(summary.parameters) }} | {{ count(summary.trained) }} | | |

Memory for weights, gradients and Adam in float32, without activations: {{ size(summary.memory_run) }} to run,
{{ size(summary.memory_train) }} to train.

## How it was trained
{% if training %}
| | |
|---|---|
| data set | `{{ training.dataset }}`, split `{{ training.split }}`{% if training.examples %}, {{ training.examples }} examples{% endif %} |
{% if training.fingerprint %}| fingerprint of the data | `{{ training.fingerprint }}` |
{% endif %}| steps | {{ training.steps }} in {{ training.seconds }} s on {{ training.device }}, {{ training.precision }}, {{ training.processes }} process{{ "es" if training.processes > 1 else "" }} |
| seed | {{ training.seed }} |
{% if training.history %}| last loss | {{ "%.4f" | format(training.history[-1].loss) }} |
{% endif %}{% if training.skipped %}| examples left out, image unreadable | {{ training.skipped }} |
{% endif %}{% if training.blank_images %}| control | trained with blank images |
{% endif %}| versions | {{ versions }} |
{% else %}
No run is recorded.
{% endif %}
## How it was measured
{% if evaluations %}
Each score with its 95% bootstrap interval (resampled by image), beside the same model with its images shuffled and blanked.
{% for evaluation in evaluations %}
`{{ evaluation.dataset }}`, split `{{ evaluation.split }}`, {{ evaluation.examples }} examples, fingerprint `{{ evaluation.fingerprint[:16] }}`:

| metric | score |{% for control in evaluation.controls %} images {{ control }} |{% endfor %}

|---|---|{% for control in evaluation.controls %}---|{% endfor %}

{% for metric, score in evaluation.scores.items() -%}
| {{ metric }} | {{ interval(score) }} |{% for scores in evaluation.controls.values() %} {{ interval(scores[metric]) }} |{% endfor %}

{% endfor -%}
{% endfor %}
{%- else %}
No evaluation is recorded.
{% endif %}
## Recipe

```yaml
{{ recipe_yaml }}```
{% for title, text in sections %}
## {{ title }}

{{ text }}
{% endfor -%}
"""


def render(
    recipe: Recipe, summary: Summary, run: dict[str, Any], *, generates: bool = False, sections: list[tuple[str, str]] | None = None
) -> str:
    """Markdown with YAML metadata. A number that no run recorded is not in it."""
    training = run.get("training")
    evaluations = run.get("evaluations", [])
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    data = recipe.to_dict()
    return environment.from_string(TEMPLATE).render(
        metadata=yaml.safe_dump(_metadata(recipe, training, evaluations), sort_keys=False, allow_unicode=True),
        name=recipe.name or "unnamed",
        recipe=recipe,
        run=run,
        summary=summary,
        count=count,
        size=size,
        interval=_interval,
        training=training,
        versions=", ".join(f"{k} {v}" for k, v in training["versions"].items()) if training else "",
        evaluations=evaluations,
        recipe_yaml=yaml.safe_dump(_short(data), sort_keys=False, allow_unicode=True, width=110),
        generates=generates,
        sections=sections or [],
    )


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
