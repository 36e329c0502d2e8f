"""From a recipe to a model: resolve the parts, check that they fit on the meta device, then make them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmzoo import checkpoint, isolate, licence, policy, remotes, shelf, transfer, unpack
from mmzoo.errors import BadRecipe, CheckpointError, DoesNotFit, MmzooError, PluginBroken, SourceError, UnknownName
from mmzoo.hookspecs import PROJECT
from mmzoo.inputs import NONE, plural
from mmzoo.interfaces import MODALITIES, Encoder, Example, FeatureSpec, Fusion, LanguageModel, LanguageSpec, Part, Task
from mmzoo.model import MultimodalModel, Provenance
from mmzoo.plugins import host
from mmzoo.recipe import PARTS, Recipe, merge, read_mapping
from mmzoo.registry import Entry, split_use
from mmzoo.resolve import Resolved, resolve
from mmzoo.summary import Summary
from mmzoo.tensors import Stored

MAX_STRANGERS = 50  # whose classes a suggestion looks at
BASES: dict[str, type] = {"encoder": Encoder, "fusion": Fusion, "language_model": LanguageModel, "task": Task}


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
    folder = remotes.local(model, revision=revision)
    contents = checkpoint.read(folder)
    host().check_needed(contents.plugins)
    with shelf.standing(unpack.backbones(folder)), _locked(contents):
        built = _load(contents)
    return built if device is None else built.to(device)


def outline(model: str | Path, *, revision: str | None = None) -> MultimodalModel:
    """A checkpoint's model on the meta device, with its tokenizer and transform: verified as `load` does, and no weights read.

    Raises:
        As `load`.
    """
    folder = remotes.local(model, revision=revision)
    contents = checkpoint.read(folder)
    host().check_needed(contents.plugins)
    with shelf.standing(unpack.backbones(folder)), shelf.recording() as fetched, _locked(contents):
        plan = _plan(contents)[0]
        _ = plan.language_model.tokenizer
    now = {(b.id, name): shelf.sha256(path) for b in fetched.values() for name, path in b.files.items()}
    for kind, facts in contents.lock.items():
        for name, digest in facts["files"].items():
            if now.get((facts["id"], name), digest) != digest:
                raise _not_locked(kind, facts, name, "is not the file that this checkpoint was trained with")
    return plan


def _plan(contents: checkpoint.Contents) -> tuple[MultimodalModel, torch.dtype | None]:
    """The model on the meta device, and the type that it was saved in."""
    folder = contents.folder
    with _named(folder / checkpoint.MANIFEST):
        recipe = transfer.settled(Recipe.of(contents.recipe, origin="recipe")).pinned(contents.lock)
        plan = assemble(recipe, meta=True, folder=folder)
    return plan, _check_stored(checkpoint.stored(folder), plan, folder / checkpoint.WEIGHTS, full=contents.full)


def _load(contents: checkpoint.Contents) -> MultimodalModel:
    plan, dtype = _plan(contents)
    recipe = transfer.settled(Recipe.of(contents.recipe, origin="recipe"))
    built = assemble(recipe, lock=contents.lock, random=contents.full, folder=contents.folder)
    built.load_state_dict(checkpoint.read_weights(contents.folder, dict(plan.named_parameters())), strict=False)
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
            with _blamed(found[kind].entry, "could not load its weights"):
                part.load_pretrained()
            if left := [name for name, p in part.named_parameters() if p.is_meta]:
                raise PluginBroken(f"{found[kind].entry.label}: load_pretrained left {left[0]} without a value")
        if lock is not None and not random:
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
    """Whatever a plugin's code raises is an error that names the plugin."""
    try:
        yield
    except (MmzooError, KeyboardInterrupt):
        raise
    except BaseException as error:
        said = (f"{type(error).__name__}: {error}".splitlines() or [""])[0]  # below it torch tells of its C++ frames
        raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}' {what}: {said}") from error


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
    encoder, fusion, language, task = (found[kind] for kind in PARTS)
    modality = encoder.cls.modality
    if modality not in (*MODALITIES, NONE):
        raise PluginBroken(f"{encoder.entry.label}: its modality {modality!r} is none of {', '.join((*MODALITIES, NONE))}")
    if modality not in ("image", NONE) and encoder.cls.reader is Encoder.reader:
        raise PluginBroken(f"{encoder.entry.label} takes {plural(modality)} and opens images; give it a mmzoo.inputs.Reader")
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


def check_data(recipe: Recipe, example: Example | None, where: str) -> None:
    """Check that the encoder takes what an example of the data set ``where`` has, before anything is fetched.

    Raises:
        DoesNotFit: naming what would fit.
    """
    encoder = resolve("encoder", recipe.encoder)
    wanted, given = getattr(encoder.cls, "modality", NONE), [] if example is None else example.modalities
    if wanted == NONE or not given or wanted in given:
        return
    raise DoesNotFit(
        f"data set '{where}' holds {' and '.join(map(plural, given))}, and {encoder.entry.label} takes {plural(wanted)}.\n"
        + _instead("encoder", lambda cls: cls.modality in given)
        + "\n"
        + _instead("dataset", lambda cls: cls.modality == wanted)
        + f" In files of your own, {plural(wanted)} stand in a column '{wanted}', or the one that {wanted}_column names."
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
    if fusion.tiles > 1 and encoder.modality != "image":
        raise DoesNotFit(f"fusion.tiles: {name} cuts images into pieces, and encoder '{found['encoder'].entry.name}' takes none")
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
    """Which entries of a kind would fit, in words. Of strangers' entries only some are imported for that, and not for long."""
    names, strangers, untried = [], 0, 0
    for entry in host().registry.entries(kind):
        load = entry.load
        if entry.plugin != PROJECT:
            strangers += 1
            if strangers > MAX_STRANGERS:
                untried += 1
                continue
            load = partial(_load_limited, entry)
        try:
            if fits(load()):
                names.append(entry.name)
        except Exception:
            continue  # another plugin's broken entry is no suggestion
    words = kind.replace("_", " ")
    rest = f" ({untried} were not tried.)" if untried else ""
    return (f"Each {words} that fits: {', '.join(names)}." if names else f"No registered {words} fits.") + rest


def _load_limited(entry: Entry) -> Any:
    outcome = isolate.limited(entry.load, isolate.timeout(), package=entry.target.partition(":")[0].partition(".")[0])
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


# Weights of a checkpoint

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
HALVES = {torch.float32, torch.float16, torch.bfloat16}
MAX_COMPUTED = 2 << 30


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What is wrong with a recipe is said of the file that it stands in."""
    try:
        yield
    except (BadRecipe, UnknownName, DoesNotFit, PluginBroken) as error:
        raise type(error)(f"{path}: {error}") from error


def _check_stored(stored: Mapping[str, Stored], plan: MultimodalModel, where: Path, *, full: bool) -> torch.dtype | None:
    """Compare what a file holds with what the recipe makes, on the meta device: nothing is allocated yet.

    Returns:
        The type that the model was saved in, None if that is the recipe's own.
    """
    state, expected = plan.state_dict(), plan.saved_names(full=full)
    if wrong := sorted(set(expected) ^ set(stored)):
        raise CheckpointError(f"{where}: {len(wrong)} tensors are missing or unexpected: {', '.join(wrong[:5])}")
    changed = set()
    for name in expected:
        made, found = state[name], stored[name]
        if tuple(made.shape) != found.shape:
            raise CheckpointError(f"{where}: {name} is {list(found.shape)}, the recipe makes it {list(made.shape)}")
        dtype = DTYPES[found.dtype]
        if dtype != made.dtype and not {dtype, made.dtype} <= HALVES:
            raise CheckpointError(
                f"{where}: {name} is {found.dtype}, the recipe makes it {str(made.dtype).removeprefix('torch.')}"
            )
        if made.is_floating_point():
            changed.add(None if dtype == made.dtype else dtype)
    # Every other tensor of a part without pretrained weights is computed when the part is made, such as a mask.
    computed = sum(
        buffer.numel() * buffer.element_size()
        for name, buffer in plan.named_buffers()
        if name not in stored and not plan.provenance.pretrained[name.split(".", 1)[0]]
    )
    if computed > MAX_COMPUTED:
        raise CheckpointError(f"{where.parent / checkpoint.MANIFEST}: its recipe computes buffers of {computed} bytes")
    return next(iter(changed)) if len(changed) == 1 else None


def _take_weights(model: MultimodalModel, source: str | Path) -> None:
    """Give each part of ``model`` the weights that a checkpoint has of the same entry.

    Raises:
        DoesNotFit: no part agrees; saying why of each.
    """
    folder = remotes.local(source)
    contents = checkpoint.read(folder)
    stored = checkpoint.stored(folder)
    theirs = Recipe.of(contents.recipe, origin=str(folder / checkpoint.MANIFEST))
    state, chosen, reasons = model.state_dict(), {}, {}
    for kind in PARTS:
        names = [name for name in stored if name.startswith(f"{kind}.")]
        ours, other = (split_use(getattr(recipe, kind).use)[0] for recipe in (model.recipe, theirs))
        wrong = [name for name in names if name not in state or tuple(state[name].shape) != stored[name].shape]
        if ours != other:
            reasons[kind] = f"it is '{other}' there, and '{ours}' here"
        elif wrong:
            reasons[kind] = f"{wrong[0]} is not here, or has another shape"
        elif names:
            chosen.update(dict.fromkeys(names))
    if not chosen:
        why = "; ".join(f"{kind.replace('_', ' ')}: {reason}" for kind, reason in reasons.items())
        raise DoesNotFit(f"{source}: has weights for no part of this model: {why or 'it holds none'}")
    tensors = checkpoint.read_weights(folder, dict(model.named_parameters()))
    model.load_state_dict({name: tensors[name] for name in chosen}, strict=False)
    license = licence.computed(theirs, contents.run).id
    for kind in dict.fromkeys(name.partition(".")[0] for name in chosen):
        origin = transfer.Source(kind, folder, getattr(theirs, kind), theirs.name or "unnamed", license).record()
        model.provenance.run.setdefault("weights", {})[kind] = origin
    for kind, reason in reasons.items():
        warnings.warn(f"{source}: the {kind.replace('_', ' ')} takes no weights: {reason}", stacklevel=3)


# Locks


@contextmanager
def _locked(contents: checkpoint.Contents) -> Iterator[None]:
    """A backbone that cannot be fetched any more is said to be locked, and what can be done."""
    try:
        yield
    except SourceError as error:
        for kind, facts in contents.lock.items():
            if facts["source"] == "hub" and f"'{facts['id']}'" in str(error):
                raise SourceError(
                    f"{error}\n{contents.folder / checkpoint.MANIFEST}: its {kind.replace('_', ' ')} is locked to '{facts['id']}'"
                    f" at commit {facts['commit']}. If that is gone for good, a machine that has it in its cache still loads "
                    "it: there, `mmzoo pack MODEL out.mmzoo` puts all of it into one file, and `mmzoo push MODEL REPOSITORY "
                    "--full` shares every weight"
                ) from None
        raise


def _check_lock(lock: Mapping[str, Mapping[str, Any]], loaded: Mapping[str, Part]) -> None:
    if unlocked := [kind for kind, part in loaded.items() if kind not in lock and part.lock()]:
        raise CheckpointError(f"{unlocked[0].replace('_', ' ')}: the checkpoint has no lock for its pretrained weights")
    for kind, facts in lock.items():
        if kind not in loaded:
            continue
        now = loaded[kind].lock().get("files", {})
        if unlocked := [name for name in now if name.endswith(".safetensors") and name not in facts.get("files", {})]:
            raise CheckpointError(f"{kind.replace('_', ' ')} {facts.get('id')}: {unlocked[0]} is not in the checkpoint's lock")
        for name, digest in facts.get("files", {}).items():
            if now.get(name) != digest:
                why = "is not there" if name not in now else "is not the file that this checkpoint was trained with"
                raise _not_locked(kind, facts, name, why)


def _not_locked(kind: str, facts: Mapping[str, Any], name: str, why: str) -> CheckpointError:
    locked = facts["files"][name]
    return CheckpointError(f"{kind.replace('_', ' ')} {facts.get('id')}: {name} {why} (locked sha256 {locked[:12]}...)")
