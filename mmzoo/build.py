"""From a recipe to a model: resolve the parts, check that they fit on the meta device, then make them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from mmzoo import checkpoint, policy, transfer
from mmzoo.errors import BadRecipe, CheckpointError, DoesNotFit, MmzooError, PluginBroken
from mmzoo.interfaces import Encoder, Fusion, LanguageModel, Part, Task
from mmzoo.model import MultimodalModel, Provenance
from mmzoo.plugins import host
from mmzoo.recipe import PARTS, Recipe, merge, read_mapping
from mmzoo.resolve import Resolved, resolve
from mmzoo.summary import Summary

BASES: dict[str, type] = {"encoder": Encoder, "fusion": Fusion, "language_model": LanguageModel, "task": Task}


def build(
    recipe: str | Path | Recipe | None = None,
    /,
    *,
    pretrained: bool | None = None,
    seed: int | None = None,
    **changes: Any,
) -> MultimodalModel:
    """Make a model from a recipe's name, a YAML or JSON file, a `Recipe`, or from parts.

    Args:
        recipe: what to start from; None if ``changes`` name encoder, fusion, language_model and task.
        pretrained: False gives the same sizes with random weights and downloads none.
        seed: of the random initialisation; None leaves torch's generator as it is.
        changes: parts and options laid over the recipe: ``fusion={"length": 20}``, ``encoder="timm:resnet18"``.

    Returns:
        The model, on the CPU, in evaluation mode.

    Raises:
        UnknownName, BadRecipe, DoesNotFit: before any weight is downloaded.
        SourceError: pretrained weights cannot be fetched.
    """
    chosen = read_recipe(recipe, pretrained=pretrained, **changes)
    if seed is not None:
        torch.manual_seed(seed)
    return assemble(chosen)


def check(recipe: str | Path | Recipe | None = None, /, *, pretrained: bool | None = None, **changes: Any) -> Summary:
    """The fit check alone, from configurations, on the meta device: what the model would be, in numbers.

    Raises:
        DoesNotFit: saying what does not fit, and which entries would. UnknownName, BadRecipe: as `build`.
    """
    return assemble(read_recipe(recipe, pretrained=pretrained, **changes), meta=True).summary()


def load(folder: str | Path, *, device: str | torch.device | None = None) -> MultimodalModel:
    """Load a checkpoint folder that `MultimodalModel.save` wrote. It gives the same outputs, to the last bit.

    Raises:
        CheckpointError: a file is missing, truncated or altered, a backbone is not the one that was locked, or the
            format is newer. MissingPlugin: naming the pip command.
    """
    contents = checkpoint.read(folder)
    recipe = transfer.settled(Recipe.of(contents.recipe, origin=str(contents.folder / checkpoint.MANIFEST)))
    full = contents.full
    model = assemble(recipe, lock=contents.lock, random=full, folder=contents.folder)
    weights = checkpoint.read_weights(folder)
    expected = set(model.saved_names(full=full))
    where = contents.folder / checkpoint.WEIGHTS
    if wrong := sorted(expected ^ set(weights)):
        raise CheckpointError(f"{where}: {len(wrong)} tensors are missing or unexpected: {', '.join(wrong[:5])}")
    state = model.state_dict()
    for name, value in weights.items():
        if state[name].shape != value.shape:
            raise CheckpointError(f"{where}: {name} is {list(value.shape)}, the recipe makes it {list(state[name].shape)}")
    model.load_state_dict(weights, strict=False)
    model.provenance.run, model.provenance.full = contents.run, full
    return model if device is None else model.to(device)


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
    return Recipe.of(merge(base, changes), origin)


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
    entry = host().get("recipe", text)
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
    _check_classes(found)
    with torch.device("meta"):
        parts = _make(found)
    policies = {kind: part.train or found[kind].cls.default_train for kind, part in recipe.parts().items()}
    _check_fit(found, parts, policies)
    wants = {kind: kind not in sources and _wants_weights(recipe, kind, parts[kind]) for kind in PARTS}
    for kind, source in sources.items():
        source.check(parts[kind])
    if not meta:
        loaded = {kind: parts[kind] for kind, wanted in wants.items() if wanted and not random}
        for kind, part in loaded.items():
            part.load_pretrained()
            if left := [name for name, p in part.named_parameters() if p.is_meta]:
                raise PluginBroken(f"{found[kind].entry.label}: load_pretrained left {left[0]} without a value")
        if lock and not random:
            _check_lock(lock, loaded)
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
        host().manager.hook.mmzoo_model_built(model=model)
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
    try:
        return resolved.cls(*arguments)
    except MmzooError:
        raise
    except Exception as error:  # a plugin's constructor may raise anything
        entry = resolved.entry
        said = f"{type(error).__name__}: {error}".splitlines()[0]  # below it torch tells of its C++ frames
        raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}' could not be built: {said}") from error


def _wants_weights(recipe: Recipe, kind: str, part: Part) -> bool:
    chosen = getattr(recipe, kind).pretrained
    wanted = recipe.pretrained if chosen is None else chosen
    return bool(wanted and type(part).pretrainable and getattr(part, "has_pretrained", True))


# Fit


def _check_classes(found: dict[str, Resolved]) -> None:
    """What can be refused from the classes alone, before any configuration is fetched."""
    for kind, resolved in found.items():
        if not (isinstance(resolved.cls, type) and issubclass(resolved.cls, BASES[kind])):
            raise PluginBroken(
                f"{resolved.entry.label} of plugin '{resolved.entry.plugin}': {resolved.entry.target} is no "
                f"mmzoo.interfaces.{BASES[kind].__name__}"
            )
    fusion, language, task = (found[kind] for kind in ("fusion", "language_model", "task"))
    kind = language.cls.kind
    for part in (fusion, task):
        kinds = part.cls.kinds
        if kind not in kinds:
            raise DoesNotFit(
                f"{part.entry.label} needs a {' or '.join(sorted(kinds))} language model; '{language.entry.name}' is {kind}.\n"
                + _instead("language_model", lambda cls, kinds=kinds: cls.kind in kinds and _serves(fusion.cls, cls))
                + "\n"
                + _instead(part.entry.kind, lambda cls: kind in cls.kinds)
            )
    if task.cls.needs_generation and not language.cls.generates:
        raise DoesNotFit(
            f"{task.entry.label} generates text, and language model '{language.entry.name}' does not.\n"
            + _instead("language_model", lambda cls: cls.generates and _serves(fusion.cls, cls))
            + "\n"
            + _instead("task", lambda cls: not cls.needs_generation)
        )
    if fusion.cls.needs_decoder and not task.cls.needs_generation:
        raise DoesNotFit(
            f"{fusion.entry.label} gives the image to the decoder alone, and {task.entry.label} reads the encoder.\n"
            + _instead("task", lambda cls: cls.needs_generation)
            + "\n"
            + _instead("fusion", lambda cls: not cls.needs_decoder and kind in cls.kinds)
        )


def _serves(fusion: type[Fusion], language: type[LanguageModel]) -> bool:
    """Whether a fusion serves a language model, as far as classes tell: which blocks it has, only its instance knows."""
    return language.kind in fusion.kinds and (not fusion.needs_blocks or language.blocks is not Part.blocks)


def _check_fit(found: dict[str, Resolved], parts: dict[str, Any], policies: dict[str, str]) -> None:
    """What can be refused from the parts on the meta device, before any weight is fetched."""
    encoder, fusion, language = parts["encoder"], parts["fusion"], parts["language_model"]
    name, spec = found["fusion"].entry.label, language.spec
    if encoder.transform is not None and not fusion.places():
        raise DoesNotFit(
            f"{name} leaves the features of encoder '{found['encoder'].entry.name}' out.\n"
            + _instead("fusion", lambda cls: cls.places() and spec.kind in cls.kinds)
            + "\nFor text alone, encoder 'none' goes with it."
        )
    if fusion.needs_tokens and encoder.spec.tokens == 0:
        raise DoesNotFit(
            f"{name} reads token features, and encoder '{found['encoder'].entry.name}' gives pooled ones only.\n"
            + _instead("fusion", lambda cls: not cls.needs_tokens and spec.kind in cls.kinds)
        )
    if fusion.needs_blocks and not spec.blocks:
        raise DoesNotFit(
            f"{name} attaches to the blocks of a language model, and '{found['language_model'].entry.name}' has none of its dim "
            "that can be found.\n" + _instead("fusion", lambda cls: not cls.needs_blocks and spec.kind in cls.kinds)
        )
    added, needed = fusion.added_tokens, parts["task"].positions
    if added is not None and spec.max_length is not None and added + needed > spec.max_length:
        raise DoesNotFit(
            f"{name} adds {added} tokens and {found['task'].entry.label} needs {needed} at least; the context of "
            f"'{found['language_model'].entry.name}' is {spec.max_length}. Choose fewer tokens, a prefix or resampler fusion, "
            "a smaller task.max_new_tokens, or a longer context"
        )
    for kind, part in parts.items():
        policy.check(part, policies[kind], found[kind].entry.label, kind)


def _instead(kind: str, fits: Any) -> str:
    """Which entries of a kind would fit, in words."""
    names = []
    for entry in host().registry.entries(kind):
        try:
            if fits(entry.load()):
                names.append(entry.name)
        except (MmzooError, AttributeError):
            continue  # another plugin's broken entry is no suggestion
    words = kind.replace("_", " ")
    return f"Each {words} that fits: {', '.join(names)}." if names else f"No registered {words} fits."


# Locks


def _check_lock(lock: Mapping[str, Mapping[str, Any]], loaded: Mapping[str, Part]) -> None:
    for kind, facts in lock.items():
        if kind not in loaded:
            continue
        now = loaded[kind].lock().get("files", {})
        for name, digest in facts.get("files", {}).items():
            if now.get(name) != digest:
                raise CheckpointError(
                    f"{kind.replace('_', ' ')} {facts.get('id')}: {name} "
                    + ("is not there" if name not in now else "is not the file that this checkpoint was trained with")
                    + f" (locked sha256 {digest[:12]}...)"
                )
