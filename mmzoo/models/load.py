"""Load checkpoints: whole models, models without weights, and weights into an existing model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from mmzoo.backbones import local_backbones
from mmzoo.checkpoints.folder import CheckpointContents, read_checkpoint, read_weights, stored_tensors
from mmzoo.checkpoints.header import StoredTensor
from mmzoo.checkpoints.screening import MANIFEST, WEIGHTS
from mmzoo.common.files import hash_unchanged
from mmzoo.errors import BadRecipe, DoesNotFit, PluginBroken, UnknownName
from mmzoo.interfaces.kinds import key_of
from mmzoo.models import locks
from mmzoo.models.assemble import assemble
from mmzoo.models.bases import check_tokens, replace_bases
from mmzoo.models.model import MultimodalModel
from mmzoo.models.warm_start import MISSING, WarmStart, without_sources
from mmzoo.recipes import licence
from mmzoo.recipes.schema import Recipe
from mmzoo.registry.entries import split_use
from mmzoo.registry.manager import plugin_manager
from mmzoo.sharing.locations import local_folder
from mmzoo.sharing.unpack import backbones


def load(
    model: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    bases: Mapping[str, str | Path] | None = None,
) -> MultimodalModel:
    """Load a checkpoint that `MultimodalModel.save` wrote. The loaded model's outputs are identical to the saved one's.

    Args:
        model: a folder, a pack (``"name.mmzoo"``), ``"me/repository"`` on the Hub, or ``"file:///a/folder/me/repository"``.
        revision: a branch, tag or commit of a repository; ``"me/repository@REVISION"`` means the same.
        device: the device to move it to; None for the CPU.
        bases: what to use in place of a repository or folder that the model is built on, by the recorded name: a folder, or
            ``"owner/name[@REVISION]"``. Its files must have the recorded sha256.

    Raises:
        CheckpointError: a file is missing, truncated or altered, a backbone differs from the locked one, the weights do not
            match the recipe, or the format is newer. MissingPlugin: naming the pip command.
        HubError: the repository cannot be reached or does not exist.
    """
    folder = local_folder(model, revision=revision)
    saved = read_checkpoint(folder)
    contents = replace_bases(saved, bases) if bases else saved
    plugin_manager().check_needed(contents.plugins)
    with local_backbones.use_local(backbones(folder)), locks.explain_locked_backbone(saved):
        plan, dtype = _plan(contents)
        recipe = without_sources(Recipe.of(contents.recipe, origin="recipe"))
        loaded = assemble(recipe, lock=contents.lock, random=contents.full, folder=folder)
        loaded.load_state_dict(read_weights(folder, dict(plan.named_parameters())), strict=False)
        _ = loaded.language_model.tokenizer  # loaded on first use: now its files are accessible
    if bases:
        check_tokens(contents, loaded)
    loaded.provenance.run, loaded.provenance.full = contents.run, contents.full
    return loaded.to(device, dtype)


def load_without_weights(model: str | Path, *, revision: str | None = None) -> MultimodalModel:
    """Load a checkpoint's model on the meta device, with its tokenizer and transform.

    It is verified as in `load`, and the same errors are raised, but no weights are read.
    """
    folder = local_folder(model, revision=revision)
    contents = read_checkpoint(folder)
    plugin_manager().check_needed(contents.plugins)
    nearby, fetching = local_backbones.use_local(backbones(folder)), local_backbones.record_fetches()
    with nearby, fetching as fetched, locks.explain_locked_backbone(contents):
        plan, _ = _plan(contents)
        _ = plan.language_model.tokenizer
    now = {(b.id, name): hash_unchanged(path) for b in fetched.values() for name, path in b.files.items()}
    for kind, facts in contents.lock.items():
        for name, digest in facts["files"].items():
            if now.get((facts["id"], name), digest) != digest:
                raise locks.lock_error(kind, facts, name, "is not the file that this checkpoint was trained with")
    return plan


def _plan(contents: CheckpointContents) -> tuple[MultimodalModel, torch.dtype | None]:
    """Return the model on the meta device, and the dtype that it was saved in (None for the recipe's own)."""
    folder = contents.folder
    try:
        recipe = without_sources(Recipe.of(contents.recipe, origin="recipe")).pinned(contents.lock)
        plan = assemble(recipe, meta=True, folder=folder)
    except (BadRecipe, UnknownName, DoesNotFit, PluginBroken) as error:
        raise type(error)(f"{folder / MANIFEST}: {error}") from error
    return plan, locks.check_tensors(stored_tensors(folder), plan, folder / WEIGHTS, full=contents.full)


def take_weights(model: MultimodalModel, source: str | Path) -> None:
    """Copy a checkpoint's weights into each part of ``model`` that is the same entry and has tensors of the same shapes.

    Raises:
        DoesNotFit: no part matches; the message says why for each.
    """
    folder = local_folder(source)
    contents = read_checkpoint(folder)
    saved = Recipe.of(contents.recipe, origin=str(folder / MANIFEST))
    names, reasons = _match_parts(model, saved, stored_tensors(folder))
    if not names:
        why = "; ".join(f"{key.replace('_', ' ')}: {reason}" for key, reason in reasons.items())
        raise DoesNotFit(f"{source}: has weights for no part of this model: {why or 'it holds none'}")
    tensors = read_weights(folder, dict(model.named_parameters()))
    model.load_state_dict({name: tensors[name] for own in names.values() for name in own}, strict=False)
    license = licence.join(row.license for row in licence.of_model(saved, contents.run))
    for key in names:
        origin = WarmStart(key, key, folder, saved.parts()[key], saved.name or "unnamed", license).record()
        model.provenance.run.setdefault("weights", {})[key] = origin
    for key, reason in reasons.items():
        warnings.warn(f"{source}: the {key.replace('_', ' ')} takes no weights: {reason}", stacklevel=3)


def _match_parts(
    model: MultimodalModel, saved: Recipe, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the names of the tensors to copy by part, and for each part that does not match, the reason."""
    state, matching, reasons = model.state_dict(), {}, {}
    saved_parts = saved.parts()
    for key, part in model.recipe.parts().items():
        names = [name for name in stored if key_of(name) == key and not name.startswith(f"{key}.{MISSING}")]
        wrong = [name for name in names if name not in state or tuple(state[name].shape) != stored[name].shape]
        if key not in saved_parts:
            reasons[key] = "there is none of that name"
        elif (own := split_use(part.use)[0]) != (other := split_use(saved_parts[key].use)[0]):
            reasons[key] = f"it is '{other}' there, and '{own}' here"
        elif wrong:
            reasons[key] = f"{wrong[0]} does not exist here, or has another shape"
        elif names:
            matching[key] = names
    return matching, {model.recipe.label(key): reason for key, reason in reasons.items()}
