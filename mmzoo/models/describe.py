"""Describe a model: its summary and its card."""

from __future__ import annotations

from typing import Any

from mmzoo.checkpoints import card
from mmzoo.checkpoints.summary import Activations, Summary, summarise, total_summary
from mmzoo.common.sanitize import one_line
from mmzoo.interfaces import Encoder
from mmzoo.interfaces.kinds import kind_of
from mmzoo.models.trainable import adapted
from mmzoo.recipes import licence
from mmzoo.registry.manager import plugin_manager


def summarise_model(model: Any, *, activations: bool = True) -> Summary:
    """Return the summary of a model, which may be on the meta device; without ``activations`` it runs nothing."""
    recipe, parts = model.recipe, model.recipe.parts()
    rows = [
        summarise(
            recipe.label(key),
            model.part(key),
            use=part.use,
            shape=_shape(kind_of(key), model.part(key)),
            policy=model.provenance.policies[key],
            license=licence.of_part(kind_of(key), part),
            source=model.provenance.entries[key].source,
            adapters=str(adapted(model.part(key)) or ""),
        )
        for key, part in parts.items()
    ]
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    return total_summary(
        model.recipe.name or "unnamed",
        rows,
        buffers,
        licences=licence.of_recipe(model.recipe, model.provenance.run.get("weights")),
        adds=model.added_tokens(),
        activations=_activations(model) if activations else None,
        batch_size=model.recipe.training.batch_size,
    )


def _activations(model: Any) -> Activations:
    """Estimate the activations; a version of torch without the private names that this needs leaves them unknown."""
    try:
        from mmzoo.models.memory import estimate
    except (ImportError, AttributeError) as error:
        return Activations(problem=one_line(f"{type(error).__name__}: {error}", 200))
    return estimate(model)


def model_card(model: Any) -> str:
    """Return the model card, in Markdown, with the sections that plugins add."""
    run = model.provenance.run
    added = plugin_manager().manager.hook.mmzoo_card_sections(model=model, run=run)
    return card.render(
        model.recipe,
        summarise_model(model, activations=False),
        run,
        generates=any(task.needs_generation for task in model.tasks.values()),
        modalities=model.modalities,
        folder=card.HERE,
        sections=[section for sections in added for section in sections],
    )


def _shape(kind: str, part: Any) -> str:
    """Return what a part does to shapes, in a few words."""
    if kind == "encoder":
        return _encoder_shape(part)
    if kind == "fusion":
        added = f"+{part.added_tokens} tokens" if part.added_tokens else "no added tokens"
        return f"{' and '.join(part.places()) or 'nowhere'}, {added if part.added_tokens is not None else 'tokens by the input'}"
    if kind == "language_model":
        spec = part.spec
        return f"{spec.architecture}, dim {spec.dim}, {spec.vocab_size} words, context {spec.max_length or 'unlimited'}"
    return getattr(part, "shape", "")


def _encoder_shape(encoder: Encoder) -> str:
    if encoder.transform is None:
        return "has no input"
    spec = encoder.spec
    tokens = "pooled only" if spec.tokens == 0 else f"{'any' if spec.tokens is None else spec.tokens} tokens x {spec.dim}"
    return f"{tokens}, pooled {spec.pooled_dim}"
