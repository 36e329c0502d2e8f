"""Describe a model: its summary and its card."""

from __future__ import annotations

from typing import Any

from mmzoo.checkpoints import card
from mmzoo.checkpoints.summary import Summary, summarise, total_summary
from mmzoo.interfaces import Encoder
from mmzoo.interfaces.kinds import PARTS
from mmzoo.recipes import licence
from mmzoo.registry.manager import plugin_manager


def summarise_model(model: Any) -> Summary:
    """Return the summary of a model, which may be on the meta device."""
    fusion, spec = model.fusion, model.language_model.spec
    context = spec.max_length or "unlimited"
    added = f"+{fusion.added_tokens} tokens" if fusion.added_tokens else "no added tokens"
    shapes = {
        "encoder": _encoder_shape(model.encoder),
        "fusion": f"{' and '.join(fusion.places()) or 'nowhere'}, {added}",
        "language_model": f"{spec.architecture}, dim {spec.dim}, {spec.vocab_size} words, context {context}",
        "task": getattr(model.task, "shape", ""),
    }
    rows = [
        summarise(
            kind,
            getattr(model, kind),
            use=getattr(model.recipe, kind).use,
            shape=shapes[kind],
            policy=model.provenance.policies[kind],
            license=licence.of_part(kind, getattr(model.recipe, kind)),
            source=model.provenance.entries[kind].source,
        )
        for kind in PARTS
    ]
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    licences = licence.of_recipe(model.recipe, model.provenance.run.get("weights"))
    return total_summary(model.recipe.name or "unnamed", rows, buffers, licences)


def model_card(model: Any) -> str:
    """Return the model card, in Markdown, with the sections that plugins add."""
    run = model.provenance.run
    added = plugin_manager().manager.hook.mmzoo_card_sections(model=model, run=run)
    return card.render(
        model.recipe,
        model.summary(),
        run,
        generates=model.task.needs_generation,
        modality=model.modality,
        folder=card.HERE,
        sections=[section for sections in added for section in sections],
    )


def _encoder_shape(encoder: Encoder) -> str:
    if encoder.transform is None:
        return "has no input"
    spec = encoder.spec
    tokens = "pooled only" if spec.tokens == 0 else f"{'any' if spec.tokens is None else spec.tokens} tokens x {spec.dim}"
    return f"{tokens}, pooled {spec.pooled_dim}"
