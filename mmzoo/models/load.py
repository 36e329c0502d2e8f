"""Load checkpoints: whole models, models without weights, and weights for a model that exists."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from mmzoo.backbones import local_backbones
from mmzoo.checkpoints.folder import CheckpointContents, read_checkpoint, read_weights, stored_tensors
from mmzoo.checkpoints.screening import MANIFEST, WEIGHTS
from mmzoo.common.files import hash_unchanged
from mmzoo.errors import DoesNotFit
from mmzoo.interfaces.kinds import PARTS
from mmzoo.models import locks
from mmzoo.models.assemble import assemble
from mmzoo.models.model import MultimodalModel
from mmzoo.models.warm_start import WarmStart, without_sources
from mmzoo.recipes import licence
from mmzoo.recipes.schema import Recipe
from mmzoo.registry.entries import split_use
from mmzoo.registry.manager import plugin_manager
from mmzoo.sharing.locations import local_folder
from mmzoo.sharing.unpack import backbones


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
    with local_backbones.use_local(backbones(folder)), locks.locked(contents):
        built = _load_model(contents)
    return built if device is None else built.to(device)


def load_without_weights(model: str | Path, *, revision: str | None = None) -> MultimodalModel:
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
        locks.locked(contents),
    ):
        plan = _plan(contents)[0]
        _ = plan.language_model.tokenizer
    now = {(b.id, name): hash_unchanged(path) for b in fetched.values() for name, path in b.files.items()}
    for kind, facts in contents.lock.items():
        for name, digest in facts["files"].items():
            if now.get((facts["id"], name), digest) != digest:
                raise locks.not_locked(kind, facts, name, "is not the file that this checkpoint was trained with")
    return plan


def _plan(contents: CheckpointContents) -> tuple[MultimodalModel, torch.dtype | None]:
    """The model on the meta device, and the type that it was saved in."""
    folder = contents.folder
    with locks.named(folder / MANIFEST):
        recipe = without_sources(Recipe.of(contents.recipe, origin="recipe")).pinned(contents.lock)
        plan = assemble(recipe, meta=True, folder=folder)
    return plan, locks.check_tensors(stored_tensors(folder), plan, folder / WEIGHTS, full=contents.full)


def _load_model(contents: CheckpointContents) -> MultimodalModel:
    plan, dtype = _plan(contents)
    recipe = without_sources(Recipe.of(contents.recipe, origin="recipe"))
    built = assemble(recipe, lock=contents.lock, random=contents.full, folder=contents.folder)
    built.load_state_dict(read_weights(contents.folder, dict(plan.named_parameters())), strict=False)
    _ = built.language_model.tokenizer  # while its files are at hand
    if dtype is not None:
        built.to(dtype)
    built.provenance.run, built.provenance.full = contents.run, contents.full
    return built


def take_weights(model: MultimodalModel, source: str | Path) -> None:
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
        origin = WarmStart(kind, folder, getattr(theirs, kind), theirs.name or "unnamed", license).record()
        model.provenance.run.setdefault("weights", {})[kind] = origin
    for kind, reason in reasons.items():
        warnings.warn(f"{source}: the {kind.replace('_', ' ')} takes no weights: {reason}", stacklevel=3)
