"""Assemble a model from a recipe: resolve the parts, check that they fit on the meta device, then make them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from mmzoo.errors import PluginBroken
from mmzoo.interfaces.features import FeatureSpec
from mmzoo.interfaces.kinds import PARTS
from mmzoo.interfaces.language_model import LanguageSpec
from mmzoo.interfaces.part import Part
from mmzoo.models import compatibility, locks
from mmzoo.models.model import MultimodalModel, Provenance
from mmzoo.models.trainable import apply_policy
from mmzoo.models.warm_start import inherit_options, without_sources
from mmzoo.recipes.resolve import Resolved, resolve
from mmzoo.recipes.schema import Recipe
from mmzoo.registry import isolation
from mmzoo.registry.entries import Entry
from mmzoo.registry.manager import plugin_manager


def assemble(
    recipe: Recipe,
    *,
    meta: bool = False,
    lock: Mapping[str, Mapping[str, Any]] | None = None,
    random: bool = False,
    folder: Path | None = None,
) -> MultimodalModel:
    """Check that the parts of a recipe fit and, unless ``meta``, make them for real.

    Args:
        meta: stop after the fit check; the model lies on the meta device.
        lock: what a checkpoint recorded of its backbones; they are fetched at that commit and compared.
        random: load no pretrained weights, although the recipe says so (all weights come from the checkpoint).
        folder: the checkpoint that parts restore what they keep beside their weights from.
    """
    if lock:
        recipe = recipe.pinned(lock)
    recipe, sources = inherit_options(recipe)
    found = {kind: resolve(kind, part) for kind, part in recipe.parts().items()}
    compatibility.check_classes(found)
    with torch.device("meta"):
        parts = _make(found)
    policies = {kind: part.train or found[kind].cls.default_train for kind, part in recipe.parts().items()}
    compatibility.check_parts(found, parts, policies)
    wants = {kind: kind not in sources and _wants_weights(recipe, kind, parts[kind]) for kind in PARTS}
    for kind, source in sources.items():
        source.check(parts[kind])
    if not meta:
        loaded = {kind: parts[kind] for kind, wanted in wants.items() if wanted and not random}
        for kind, part in loaded.items():
            with _attributed(found[kind].entry, "could not load its weights"):
                part.load_pretrained()
            if left := [name for name, p in part.named_parameters() if p.is_meta]:
                raise PluginBroken(f"{found[kind].entry.label}: load_pretrained left {left[0]} without a value")
        if lock is not None and not random:
            locks.check_lock(lock, loaded)
        parts = _make(found, loaded)
        for kind, source in sources.items():
            source.load_into(parts[kind])
    if folder is not None:
        for part in parts.values():
            part.restore(folder)
    for kind, part in parts.items():
        with torch.device("meta") if meta else nullcontext():
            apply_policy(part, policies[kind])
    entries = {kind: r.entry for kind, r in found.items()}
    run = {"weights": {kind: source.record() for kind, source in sources.items()}} if sources else {}
    provenance = Provenance(entries, policies, wants, run=run)
    model = MultimodalModel(without_sources(recipe), **parts, provenance=provenance)  # type: ignore[arg-type]
    if not meta:
        plugin_manager().manager.hook.mmzoo_model_built(model=model)
    return model


def _make(found: dict[str, Resolved], ready: Mapping[str, Part] | None = None) -> dict[str, Part]:
    """Instantiate the parts on the current device, but for those that are ``ready``."""
    parts: dict[str, Part] = dict(ready or {})
    encoder = parts.get("encoder") or _instance(found["encoder"], found["encoder"].options)
    language = parts.get("language_model") or _instance(found["language_model"], found["language_model"].options)
    parts["encoder"], parts["language_model"] = encoder, language
    parts["fusion"] = _instance(found["fusion"], found["fusion"].options, encoder.spec, language.spec)
    parts["task"] = _instance(found["task"], found["task"].options, language.spec)
    return {kind: parts[kind] for kind in PARTS}


def _instance(resolved: Resolved, *arguments: Any) -> Part:
    entry = resolved.entry
    with _attributed(entry, "could not be built"):
        part = resolved.cls(*arguments)
    spec = {"encoder": FeatureSpec, "language_model": LanguageSpec}.get(entry.kind)
    if spec is not None and not isinstance(getattr(part, "spec", None), spec):
        raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}': its spec is no mmzoo.api.{spec.__name__}")
    if entry.kind == "encoder" and not hasattr(part, "transform"):
        raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}': it has no transform (None if it looks at nothing)")
    return part


@contextmanager
def _attributed(entry: Entry, what: str) -> Iterator[None]:
    """Whatever a plugin's code raises is an error that names the plugin; torch's default type, which would be that of every
    later model, is put back."""
    default = torch.get_default_dtype()
    try:
        with isolation.attribute_errors_to(f"{entry.label} of plugin '{entry.plugin}' {what}"):
            yield
    finally:
        torch.set_default_dtype(default)


def _wants_weights(recipe: Recipe, kind: str, part: Part) -> bool:
    chosen = getattr(recipe, kind).pretrained
    wanted = recipe.pretrained if chosen is None else chosen
    return bool(wanted and type(part).pretrainable and getattr(part, "has_pretrained", True))
