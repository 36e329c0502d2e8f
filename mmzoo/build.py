"""From a recipe to a model: resolve the parts, check that they fit on the meta device, then make them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from mmzoo import fit, policy, stored, transfer
from mmzoo.backbones import local_backbones
from mmzoo.checkpoints.folder import CheckpointContents, read_checkpoint, read_weights, stored_tensors
from mmzoo.checkpoints.screening import MANIFEST, WEIGHTS
from mmzoo.checkpoints.summary import Summary
from mmzoo.errors import BadRecipe, DoesNotFit, PluginBroken
from mmzoo.interfaces.features import FeatureSpec
from mmzoo.interfaces.language_model import LanguageSpec
from mmzoo.interfaces.part import Part
from mmzoo.model import MultimodalModel, Provenance
from mmzoo.recipes import licence
from mmzoo.recipes.files import read_mapping
from mmzoo.recipes.merging import merge
from mmzoo.recipes.resolve import Resolved, resolve
from mmzoo.recipes.schema import PARTS, Recipe
from mmzoo.registry import isolation
from mmzoo.registry.entries import Entry, split_use
from mmzoo.registry.manager import plugin_manager
from mmzoo.sharing.locations import local_folder
from mmzoo.sharing.unpack import backbones


def build(
    recipe: str | Path | Recipe | None = None,
    /,
    *,
    pretrained: bool | None = None,
    seed: int | None = None,
    weights: str | Path | None = None,
    **changes: Any,
) -> MultimodalModel:
    """Make a model from a recipe's name, a YAML or JSON file, a `Recipe`, or from parts.

    Args:
        recipe: what to start from; None if ``changes`` name encoder, fusion, language_model and task.
        pretrained: False gives the same sizes with random weights and downloads none.
        seed: of the random initialisation; None leaves torch's generator as it is.
        weights: a checkpoint, as `load` takes it, to start from: each part that is the same entry there, with tensors of the
            same names and shapes, takes its weights; a warning names the parts that do not.
        changes: parts and options laid over the recipe: ``fusion={"length": 20}``, ``encoder="timm:resnet18"``.

    Returns:
        The model, on the CPU, in evaluation mode.

    Raises:
        UnknownName, BadRecipe, DoesNotFit: before any weight is downloaded.
        SourceError: pretrained weights cannot be fetched. CheckpointError, HubError: ``weights`` cannot be read.
    """
    chosen = read_recipe(recipe, pretrained=pretrained, **changes)
    if seed is not None:
        torch.manual_seed(seed)
    built = assemble(chosen)
    if weights is not None:
        _take_weights(built, weights)
    return built


def check(recipe: str | Path | Recipe | None = None, /, *, pretrained: bool | None = None, **changes: Any) -> Summary:
    """The fit check alone, from configurations, on the meta device: what the model would be, in numbers.

    Raises:
        DoesNotFit: saying what does not fit, and which entries would. UnknownName, BadRecipe: as `build`.
    """
    return assemble(read_recipe(recipe, pretrained=pretrained, **changes), meta=True).summary()


def load(model: str | Path, *, revision: str | None = None, device: str | torch.device | None = None) -> MultimodalModel:
    """Load a checkpoint that `MultimodalModel.save` wrote. It gives the same outputs, to the last bit.

    Args:
        model: a folder, a pack (``"name.mmzoo"``), ``"me/repository"`` on the Hub, or ``"file:///a/folder/me/repository"``.
        revision: a branch, tag or commit of a repository; ``"me/repository@REVISION"`` says the same.
        device: where it shall lie; None for the CPU.

    Raises:
        CheckpointError: a file is missing, truncated or altered, a backbone is not the one that was locked, the weights are
            not those of the recipe, or the format is newer. MissingPlugin: naming the pip command.
        HubError: the repository cannot be reached, or is not there.
    """
    folder = local_folder(model, revision=revision)
    contents = read_checkpoint(folder)
    plugin_manager().check_needed(contents.plugins)
    with local_backbones.use_local(backbones(folder)), stored.locked(contents):
        built = _load(contents)
    return built if device is None else built.to(device)


def outline(model: str | Path, *, revision: str | None = None) -> MultimodalModel:
    """A checkpoint's model on the meta device, with its tokenizer and transform: verified as `load` does, and no weights read.

    Raises:
        As `load`.
    """
    folder = local_folder(model, revision=revision)
    contents = read_checkpoint(folder)
    plugin_manager().check_needed(contents.plugins)
    with (
        local_backbones.use_local(backbones(folder)),
        local_backbones.record_fetches() as fetched,
        stored.locked(contents),
    ):
        plan = _plan(contents)[0]
        _ = plan.language_model.tokenizer
    now = {(b.id, name): local_backbones.sha256(path) for b in fetched.values() for name, path in b.files.items()}
    for kind, facts in contents.lock.items():
        for name, digest in facts["files"].items():
            if now.get((facts["id"], name), digest) != digest:
                raise stored.not_locked(kind, facts, name, "is not the file that this checkpoint was trained with")
    return plan


def _plan(contents: CheckpointContents) -> tuple[MultimodalModel, torch.dtype | None]:
    """The model on the meta device, and the type that it was saved in."""
    folder = contents.folder
    with stored.named(folder / MANIFEST):
        recipe = transfer.settled(Recipe.of(contents.recipe, origin="recipe")).pinned(contents.lock)
        plan = assemble(recipe, meta=True, folder=folder)
    return plan, stored.check_tensors(stored_tensors(folder), plan, folder / WEIGHTS, full=contents.full)


def _load(contents: CheckpointContents) -> MultimodalModel:
    plan, dtype = _plan(contents)
    recipe = transfer.settled(Recipe.of(contents.recipe, origin="recipe"))
    built = assemble(recipe, lock=contents.lock, random=contents.full, folder=contents.folder)
    built.load_state_dict(read_weights(contents.folder, dict(plan.named_parameters())), strict=False)
    _ = built.language_model.tokenizer  # while its files are at hand
    if dtype is not None:
        built.to(dtype)
    built.provenance.run, built.provenance.full = contents.run, contents.full
    return built


def read_recipe(recipe: str | Path | Recipe | None = None, /, *, pretrained: bool | None = None, **changes: Any) -> Recipe:
    """The recipe that `build` would build.

    Raises:
        UnknownName: no recipe and no file of that name. BadRecipe: a key is missing, unknown or of a wrong type.
    """
    base, origin = _read_base(recipe)
    if pretrained is not None:
        changes["pretrained"] = pretrained
    if unknown := [key for key in changes if key not in Recipe.model_fields]:
        raise BadRecipe(f"unknown key '{unknown[0]}'; the keys of a recipe are {', '.join(Recipe.model_fields)}")
    for key, value in changes.items():
        if hasattr(value, "model_dump"):
            changes[key] = value.model_dump(exclude_none=True)
        elif key in PARTS and not isinstance(value, str | Mapping):
            raise BadRecipe(f"{key}: must be a name or a mapping, not {type(value).__name__}")
    merged = merge(base, changes)
    if recipe is None and (missing := [part for part in PARTS if part not in merged]):
        raise BadRecipe(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: name a recipe (`mmzoo list recipe`), "
            f"or each of {', '.join(PARTS)}"
        )
    return Recipe.of(merged, origin)


def _read_base(recipe: str | Path | Recipe | None) -> tuple[dict[str, Any], str]:
    if recipe is None:
        return {}, "recipe"
    if isinstance(recipe, Recipe):
        return recipe.to_dict(), recipe.name or "recipe"
    if isinstance(recipe, Mapping):
        return dict(recipe), "recipe"
    text = str(recipe)
    if isinstance(recipe, Path) or Path(text).suffix in {".yaml", ".yml", ".json"}:
        return read_mapping(text), text
    entry = plugin_manager().get("recipe", text)
    data = entry.load()
    if not isinstance(data, Mapping):
        raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}': {entry.target} is not a mapping")
    return {"name": entry.name, "summary": entry.summary, "source": entry.source, **data}, f"recipe '{text}'"


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
    recipe, sources = transfer.adopt(recipe)
    found = {kind: resolve(kind, part) for kind, part in recipe.parts().items()}
    fit.check_classes(found)
    with torch.device("meta"):
        parts = _make(found)
    policies = {kind: part.train or found[kind].cls.default_train for kind, part in recipe.parts().items()}
    fit.check_parts(found, parts, policies)
    wants = {kind: kind not in sources and _wants_weights(recipe, kind, parts[kind]) for kind in PARTS}
    for kind, source in sources.items():
        source.check(parts[kind])
    if not meta:
        loaded = {kind: parts[kind] for kind, wanted in wants.items() if wanted and not random}
        for kind, part in loaded.items():
            with _blamed(found[kind].entry, "could not load its weights"):
                part.load_pretrained()
            if left := [name for name, p in part.named_parameters() if p.is_meta]:
                raise PluginBroken(f"{found[kind].entry.label}: load_pretrained left {left[0]} without a value")
        if lock is not None and not random:
            stored.check_lock(lock, loaded)
        parts = _make(found, loaded)
        for kind, source in sources.items():
            source.load_into(parts[kind])
    if folder is not None:
        for part in parts.values():
            part.restore(folder)
    for kind, part in parts.items():
        with torch.device("meta") if meta else nullcontext():
            policy.apply(part, policies[kind])
    entries = {kind: r.entry for kind, r in found.items()}
    run = {"weights": {kind: source.record() for kind, source in sources.items()}} if sources else {}
    provenance = Provenance(entries, policies, wants, run=run)
    model = MultimodalModel(transfer.settled(recipe), **parts, provenance=provenance)  # type: ignore[arg-type]
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
    with _blamed(entry, "could not be built"):
        part = resolved.cls(*arguments)
    spec = {"encoder": FeatureSpec, "language_model": LanguageSpec}.get(entry.kind)
    if spec is not None and not isinstance(getattr(part, "spec", None), spec):
        raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}': its spec is no mmzoo.interfaces.{spec.__name__}")
    if entry.kind == "encoder" and not hasattr(part, "transform"):
        raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}': it has no transform (None if it looks at nothing)")
    return part


@contextmanager
def _blamed(entry: Entry, what: str) -> Iterator[None]:
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


def _take_weights(model: MultimodalModel, source: str | Path) -> None:
    """Give each part of ``model`` the weights that a checkpoint has of the same entry.

    Raises:
        DoesNotFit: no part agrees; saying why of each.
    """
    folder = local_folder(source)
    contents = read_checkpoint(folder)
    there = stored_tensors(folder)
    theirs = Recipe.of(contents.recipe, origin=str(folder / MANIFEST))
    state, chosen, reasons = model.state_dict(), {}, {}
    for kind in PARTS:
        names = [name for name in there if name.startswith(f"{kind}.")]
        ours, other = (split_use(getattr(recipe, kind).use)[0] for recipe in (model.recipe, theirs))
        wrong = [name for name in names if name not in state or tuple(state[name].shape) != there[name].shape]
        if ours != other:
            reasons[kind] = f"it is '{other}' there, and '{ours}' here"
        elif wrong:
            reasons[kind] = f"{wrong[0]} is not here, or has another shape"
        elif names:
            chosen.update(dict.fromkeys(names))
    if not chosen:
        why = "; ".join(f"{kind.replace('_', ' ')}: {reason}" for kind, reason in reasons.items())
        raise DoesNotFit(f"{source}: has weights for no part of this model: {why or 'it holds none'}")
    tensors = read_weights(folder, dict(model.named_parameters()))
    model.load_state_dict({name: tensors[name] for name in chosen}, strict=False)
    license = licence.computed(theirs, contents.run).id
    for kind in dict.fromkeys(name.partition(".")[0] for name in chosen):
        origin = transfer.Source(kind, folder, getattr(theirs, kind), theirs.name or "unnamed", license).record()
        model.provenance.run.setdefault("weights", {})[kind] = origin
    for kind, reason in reasons.items():
        warnings.warn(f"{source}: the {kind.replace('_', ' ')} takes no weights: {reason}", stacklevel=3)
