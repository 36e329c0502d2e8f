"""Save a model: choose the tensors of its checkpoint, and write them with the recipe, the lock and the card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mmzoo.checkpoints.folder import write_checkpoint
from mmzoo.interfaces.kinds import PARTS

if TYPE_CHECKING:
    from mmzoo.models.model import MultimodalModel


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights and buffers of a module by name; tied weights once, under their first name."""
    first = {name for name, _ in module.named_parameters()}
    every = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in module.state_dict().items() if name not in every - first}


def saved_names(model: MultimodalModel, full: bool) -> list[str]:
    """Return the names of the tensors to save; see `MultimodalModel.saved_names`."""
    parameters = dict(model.named_parameters())
    names = []
    for name in unique_state(model):
        kind = name.partition(".")[0]
        policy = model.provenance.policies[kind]
        all_of_part = full or not model.provenance.pretrained[kind] or policy == "full"
        trained = parameters[name].requires_grad if name in parameters else policy != "frozen"  # buffers, such as statistics
        if all_of_part or trained:
            names.append(name)
    return names


def lock(model: MultimodalModel) -> dict[str, dict[str, Any]]:
    """Return where each pretrained part came from; parts without a source are left out."""
    locks = {kind: getattr(model, kind).lock() for kind in PARTS if model.provenance.pretrained[kind]}
    return {kind: facts for kind, facts in locks.items() if facts}


def save(model: MultimodalModel, folder: str | Path, full: bool) -> Path:
    """Write a checkpoint folder; see `MultimodalModel.save`."""
    full = full or model.provenance.full
    state = model.state_dict()
    return write_checkpoint(
        folder,
        recipe=model.recipe.to_dict(),
        weights={name: state[name].detach().cpu() for name in model.saved_names(full=full)},
        plugins=model.provenance.plugins(),
        lock=model.lock(),
        run=model.provenance.run,
        card=model.card(),
        save_tokenizer=model.language_model.tokenizer.save_pretrained,
        full=full,
    )
