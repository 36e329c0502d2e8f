"""Start a part from another checkpoint: inherit its options, then load its weights.

The resulting model does not depend on that checkpoint: its recipe does not name it, its own checkpoint holds all weights of
the part, and ``run.json`` records where the part came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmzoo.checkpoints.folder import read_checkpoint, stored_tensors
from mmzoo.checkpoints.screening import WEIGHTS
from mmzoo.common.files import hash_file
from mmzoo.common.sanitize import one_line, short_repr
from mmzoo.errors import BadRecipe, CheckpointError
from mmzoo.interfaces.kinds import kind_of
from mmzoo.models.trainable import unique_state
from mmzoo.recipes import licence
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig, Recipe
from mmzoo.registry.entries import split_use
from mmzoo.sharing.locations import local_folder

MISSING = "missing."  # the vectors of `Fusion.learn_missing`


@dataclass(frozen=True)
class WarmStart:
    """Represent a part of a verified checkpoint, from which a part of a new model starts.

    Args:
        label: the key of the new model's part in its recipe.
        key: that of the checkpoint's part.
    """

    label: str
    key: str
    folder: Path
    part: PartConfig
    recipe: str  # the name of the checkpoint's recipe
    license: str = licence.UNKNOWN  # of the whole checkpoint

    def check(self, part: nn.Module) -> None:
        """Compare the names and shapes of the checkpoint's tensors with those of ``part``; no weights are read.

        Raises:
            CheckpointError: a tensor is missing, unknown, or of another shape.
        """
        key, prefix = f"{self.label}.weights", f"{self.key}."
        own = {name: list(value.shape) for name, value in _weights(part).items()}
        tensors = stored_tensors(self.folder)
        stored = {name.removeprefix(prefix): list(tensors[name].shape) for name in tensors if name.startswith(prefix)}
        stored = {name: shape for name, shape in stored.items() if not name.startswith(MISSING)}
        if missing := sorted(set(own) - set(stored)):
            trained = f", of which it trained '{self.part.train}'" if self.part.train else ""
            raise CheckpointError(
                f"{key}: {self.folder} holds {len(own) - len(missing)} of the {len(own)} weights of its "
                f"'{self.part.use}'{trained}; {missing[0]} is not among them. Name a checkpoint in which the part was "
                "trained with train: full, or write one that holds every weight with model.save(folder, full=True)"
            )
        if unknown := sorted(set(stored) - set(own)):
            first = ", ".join(unknown[:5])
            raise CheckpointError(
                f"{key}: {self.folder} holds {len(unknown)} weights that '{self.part.use}' does not have: {first}"
            )
        for name, shape in own.items():
            if stored[name] != shape:
                raise CheckpointError(
                    f"{key}: {name} is {stored[name]} in {self.folder} and {shape} here; the part was made by "
                    "another version of its plugin, or beside an encoder or language model of other sizes"
                )

    def load_into(self, part: nn.Module) -> None:
        """Copy the checkpoint's weights into ``part``."""
        path = self.folder / WEIGHTS
        try:
            with torch.no_grad(), safe_open(path, framework="pt") as file:
                for name, value in _weights(part).items():
                    value.copy_(file.get_tensor(f"{self.key}.{name}"))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.label}.weights: {path} cannot be read: {one_line(error)}") from None

    def record(self) -> dict[str, Any]:
        """Return where the weights came from, for run.json: of the folder only its name, since paths differ between machines."""
        return {
            "checkpoint": self.folder.name,
            "recipe": self.recipe,
            "use": self.part.use,
            "license": self.license,
            "sha256": hash_file(self.folder / WEIGHTS),
        }


def _weights(part: nn.Module) -> dict[str, Tensor]:
    """Return a part's weights and buffers, without a fusion's vectors for missing inputs, which depend on the other encoders."""
    return {name: value for name, value in unique_state(part).items() if not name.startswith(MISSING)}


def _saved_key(key: str, part: PartConfig, saved: Recipe) -> str:
    """Return the key of the part of a checkpoint to start from: that of the same name, or the only one of the same entry."""
    if key in saved.parts():
        return key
    name = split_use(part.use)[0]
    same = [k for k, p in saved.parts().items() if kind_of(k) == kind_of(key) and split_use(p.use)[0] == name]
    return same[0] if len(same) == 1 else saved.key(kind_of(key))


def inherit_options(recipe: Recipe) -> tuple[Recipe, dict[str, WarmStart]]:
    """Return the recipe with the options that its parts inherit from the checkpoints in ``weights``, and these by kind.

    Raises:
        CheckpointError: the folder does not exist or holds no complete checkpoint.
        BadRecipe: the part there is another entry, or an option that is set here differs.
    """
    sources = {}
    for key, part in recipe.parts().items():
        if part.weights is None:
            continue
        label = recipe.label(key)
        try:
            contents = read_checkpoint(local_folder(part.weights))
            saved = Recipe.of(contents.recipe, origin=part.weights).pinned(contents.lock)
        except CheckpointError as error:
            raise type(error)(f"{label}.weights: {error}; name a folder that `mmzoo train` or model.save wrote") from None
        license = licence.join(row.license for row in licence.of_model(saved, contents.run))
        saved_key = _saved_key(key, part, saved)
        source = WarmStart(label, saved_key, contents.folder, saved.parts()[saved_key], saved.name or "unnamed", license)
        recipe = recipe.replace_part(key, _inherit(kind_of(key), part, source))
        sources[key] = source
    return recipe, sources


def without_sources(recipe: Recipe) -> Recipe:
    """Return the recipe with neither ``weights`` nor pretrained weights for the parts that start from a checkpoint."""
    for key, part in recipe.parts().items():
        if part.weights is not None:
            recipe = recipe.with_part(key, weights=None, pretrained=False)
    return recipe


def _inherit(kind: str, part: PartConfig, source: WarmStart) -> PartConfig:
    """Return the part with every option of its source; the options that it sets itself must be equal."""
    key, saved = f"{source.label}.weights", source.part
    (name, variant, revision), (saved_name, _, _) = split_use(part.use), split_use(saved.use)
    if name != saved_name:
        raise BadRecipe(
            f"{key}: the {kind.replace('_', ' ')} of {source.folder} is '{saved.use}', not '{part.use}'; "
            f"write use: {saved.use}, or name another checkpoint"
        )
    use = part.use if variant or revision else saved.use
    merged = part.with_options(**{**saved.options, **part.options, "use": use})
    here, there = (resolve(kind, config).options.model_dump(mode="json") for config in (merged, saved))
    if different := [option for option in there if here[option] != there[option]]:
        values = "; ".join(
            f"{source.label}.{o} is {short_repr(here[o])} here and {short_repr(there[o])} there" for o in different
        )
        raise BadRecipe(f"{key}: {source.folder} has other options: {values}. Leave them out to use those of the checkpoint")
    return merged
