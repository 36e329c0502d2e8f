"""Assemble a model from a recipe: resolve the parts, check them on the meta device, load weights, and build the model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from mmzoo.backbones import local_backbones
from mmzoo.errors import PluginBroken
from mmzoo.interfaces import FeatureSpec, LanguageSpec, Part
from mmzoo.interfaces.kinds import GROUPS
from mmzoo.models import compatibility, locks
from mmzoo.models.model import MultimodalModel, Provenance
from mmzoo.models.trainable import apply_policy
from mmzoo.models.warm_start import WarmStart, inherit_options, without_sources
from mmzoo.recipes.resolve import Resolved, resolve, resolve_parts
from mmzoo.recipes.schema import PartConfig, Recipe
from mmzoo.recipes.shape import ALL
from mmzoo.registry import isolation
from mmzoo.registry.entries import Entry
from mmzoo.registry.manager import plugin_manager

SPECS = {"encoder": FeatureSpec, "language_model": LanguageSpec}  # the type of a part's ``spec``


def assemble(
    recipe: Recipe,
    *,
    meta: bool = False,
    lock: Mapping[str, Mapping[str, Any]] | None = None,
    random: bool = False,
    folder: Path | None = None,
) -> MultimodalModel:
    """Check that the parts of a recipe are compatible and, unless ``meta``, build them with their weights.

    Args:
        meta: stop after the check; the model is on the meta device.
        lock: what a checkpoint recorded about its backbones; they are fetched at that commit and compared.
        random: load no pretrained weights even if the recipe asks for them: all weights come from the checkpoint.
        folder: the checkpoint from which parts restore what they save beside their weights.

    Raises:
        UnknownName, BadRecipe, DoesNotFit: before any weight is downloaded. PluginBroken: a part violates its interface.
        SourceError: pretrained weights cannot be fetched. CheckpointError: the lock or a ``weights`` checkpoint does not match.
    """
    recipe = expand_fusion(recipe)
    if lock:
        recipe = recipe.pinned(lock)
    recipe, sources = inherit_options(recipe)
    resolved = resolve_parts(recipe)
    compatibility.check_classes(resolved)
    policies = {key: part.train or resolved[key].cls.default_train for key, part in recipe.parts().items()}
    # Where a part gets no weights from the Hub, the configurations that its plugin carries are enough.
    carried = {key for key, part in recipe.parts().items() if meta or key in sources or not _asks_for_weights(recipe, part)}
    with torch.device("meta"):
        parts = _make(resolved, {}, carried)
    compatibility.check_parts(recipe, resolved, parts, policies)
    for key, source in sources.items():
        source.check(parts[key])
    pretrained = {key: key not in sources and _wants_weights(recipe, key, part) for key, part in parts.items()}
    if not meta:
        loading = {key: parts[key] for key in parts if pretrained[key] and not random}
        parts = _make_with_weights(resolved, loading, sources, carried, None if random else lock)
    for key, part in parts.items():
        if (own := sources[key].folder if key in sources else folder) is not None:
            part.restore(own)
        with torch.device("meta") if meta else nullcontext():
            apply_policy(part, policies[key])
    entries = {key: part.entry for key, part in resolved.items()}
    run = {"weights": {key: source.record() for key, source in sources.items()}} if sources else {}
    model = MultimodalModel(without_sources(recipe), parts, Provenance(entries, policies, pretrained, run=run))
    if parts["language_model"].has_local_tokenizer or (pretrained["language_model"] and not meta and not random):
        model.text_context()  # reads the tokenizer, and refuses one that does not fit
    if not meta:
        plugin_manager().manager.hook.mmzoo_model_built(model=model)
    return model


def expand_fusion(recipe: Recipe) -> Recipe:
    """Return the recipe with the fusion that serves every encoder named for each, unless it is joint."""
    if list(recipe.fusions) != [ALL] or getattr(resolve("fusion", recipe.fusions[ALL]).cls, "joint", False):
        return recipe
    return recipe.model_copy(update={"fusions": dict.fromkeys(recipe.encoders, recipe.fusions[ALL])})


def _make_with_weights(
    resolved: dict[str, Resolved],
    pretrained: dict[str, Part],
    sources: Mapping[str, WarmStart],
    carried: Collection[str],
    lock: Mapping[str, Mapping[str, Any]] | None,
) -> dict[str, Part]:
    """Load the ``pretrained`` parts, which are on the meta device, and make the others, with the weights of their sources."""
    for key, part in pretrained.items():
        entry = resolved[key].entry
        with _attribute_errors_to(entry, "could not load its weights"):
            part.load_pretrained()
        if empty := [name for name, value in part.named_parameters() if value.is_meta and not name.startswith("missing.")]:
            raise PluginBroken(f"{entry.label}: load_pretrained left {empty[0]} without a value")
    if lock is not None:
        locks.check_lock(lock, pretrained)
    parts = _make(resolved, pretrained, carried)
    for key, source in sources.items():
        source.load_into(parts[key])
    return parts


def _make(resolved: dict[str, Resolved], loaded: Mapping[str, Part], carried: Collection[str]) -> dict[str, Part]:
    """Make the parts on the current device, except those that are already loaded; those in ``carried`` need no weights."""

    def make(key: str, *specs: Any) -> Any:
        if key in loaded:
            return loaded[key]
        with local_backbones.use_carried(key in carried):
            return _instance(resolved[key], resolved[key].options, *specs)

    names = {group: [key.partition(".")[2] for key in resolved if key.startswith(f"{group}.")] for group in GROUPS.values()}
    encoders = {name: make(f"encoders.{name}") for name in names["encoders"]}
    specs, language_model = {name: encoder.spec for name, encoder in encoders.items()}, make("language_model")
    parts = {f"encoders.{name}": encoder for name, encoder in encoders.items()}
    for name in names["fusions"]:
        key, read = f"fusions.{name}", specs if name == ALL else {name: specs[name]}
        parts[key] = make(key, read if name == ALL else specs[name], language_model.spec)
        if len(encoders) > 1:  # also a loaded one, whose weights do not have these vectors
            parts[key].learn_missing(read)
    parts["language_model"] = language_model
    return parts | {f"tasks.{name}": make(f"tasks.{name}", language_model.spec, specs) for name in names["tasks"]}


def _instance(resolved: Resolved, *arguments: Any) -> Part:
    """Make a part, and check the attributes that its interface requires."""
    entry = resolved.entry
    with _attribute_errors_to(entry, "could not be built"):
        part: Part = resolved.cls(*arguments)
    spec = SPECS.get(entry.kind)
    if spec is not None and not isinstance(getattr(part, "spec", None), spec):
        raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}': its spec is not a mmzoo.api.{spec.__name__}")
    if entry.kind == "encoder" and not hasattr(part, "transform"):
        raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}': it has no transform; set it to None if it has no input")
    return part


@contextmanager
def _attribute_errors_to(entry: Entry, what: str) -> Iterator[None]:
    """Raise a plugin's errors with its name, and restore torch's default type, which would change every later model."""
    default = torch.get_default_dtype()
    try:
        with isolation.attribute_errors_to(f"{entry.label} of plugin '{entry.plugin}' {what}"):
            yield
    finally:
        torch.set_default_dtype(default)


def _wants_weights(recipe: Recipe, key: str, part: Part) -> bool:
    """Return whether pretrained weights are to be loaded into a part."""
    wanted = _asks_for_weights(recipe, recipe.parts()[key])
    return bool(wanted and type(part).pretrainable and getattr(part, "has_pretrained", True))


def _asks_for_weights(recipe: Recipe, part: PartConfig) -> bool:
    """Return whether a recipe asks for pretrained weights of a part, if it has any."""
    return recipe.pretrained if part.pretrained is None else part.pretrained
