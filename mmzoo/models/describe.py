"""Describe a model: its summary and its card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmzoo.checkpoints import card
from mmzoo.checkpoints.summary import Summary, summarise, total_summary
from mmzoo.interfaces import Encoder, Fusion, LanguageSpec
from mmzoo.interfaces.kinds import PARTS
from mmzoo.recipes import licence
from mmzoo.registry.manager import plugin_manager

if TYPE_CHECKING:
    from mmzoo.models.model import MultimodalModel


def summarise_model(model: MultimodalModel) -> Summary:
    """Return the summary of a model, which may be on the meta device."""
    shapes = {
        "encoder": _encoder_shape(model.encoder),
        "fusion": _fusion_shape(model.fusion),
        "language_model": _language_model_shape(model.language_model.spec),
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


def model_card(model: MultimodalModel) -> str:
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
    spec = encoder.spec
    if encoder.transform is None:
        return "has no input"
    tokens = "pooled only" if spec.tokens == 0 else f"{'any' if spec.tokens is None else spec.tokens} tokens x {spec.dim}"
    return f"{tokens}, pooled {spec.pooled_dim}"


def _fusion_shape(fusion: Fusion) -> str:
    places = " and ".join(fusion.places()) or "nowhere"
    return f"{places}, {f'+{fusion.added_tokens} tokens' if fusion.added_tokens else 'no added tokens'}"


def _language_model_shape(spec: LanguageSpec) -> str:
    return f"{spec.architecture}, dim {spec.dim}, {spec.vocab_size} words, context {spec.max_length or 'unlimited'}"
