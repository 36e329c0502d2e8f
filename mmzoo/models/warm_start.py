"""Starting a part from another checkpoint: its options are taken over, then its weights.

What is built of it stands on its own: its recipe no longer names the checkpoint, its own checkpoint holds the part
whole, and ``run.json`` says where the part came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmzoo.checkpoints.folder import hash_file, read_checkpoint
from mmzoo.checkpoints.screening import WEIGHTS
from mmzoo.errors import BadRecipe, CheckpointError
from mmzoo.recipes import licence
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig, Recipe
from mmzoo.registry.entries import split_use
from mmzoo.sharing.locations import local_folder


@dataclass(frozen=True)
class WarmStart:
    """A part of a verified checkpoint ``folder``, and the licence of all of that."""

    kind: str
    folder: Path
    part: PartConfig
    recipe: str
    license: str = licence.UNKNOWN

    def check(self, part: nn.Module) -> None:
        """Compare what the checkpoint holds of this kind with what ``part`` has; nothing is read but names and shapes.

        Raises:
            CheckpointError: it does not hold each of the weights, in its shape, and no other.
        """
        there, here = self._shapes(), {name: list(value.shape) for name, value in _state(part).items()}
        if missing := sorted(set(here) - set(there)):
            trained = f", of which it trained '{self.part.train}'" if self.part.train else ""
            raise CheckpointError(
                f"{self._key}: {self.folder} holds {len(here) - len(missing)} of the {len(here)} weights of its "
                f"'{self.part.use}'{trained}; {missing[0]} is not among them. Name a checkpoint in which the part was "
                "trained with train: full, or write one that holds every weight with model.save(folder, full=True)"
            )
        if unknown := sorted(set(there) - set(here)):
            raise CheckpointError(
                f"{self._key}: {self.folder} holds {len(unknown)} weights that '{self.part.use}' has not: "
                + ", ".join(unknown[:5])
            )
        for name, shape in here.items():
            if there[name] != shape:
                raise CheckpointError(
                    f"{self._key}: {name} is {there[name]} in {self.folder} and {shape} here; the part was made by "
                    "another version of its plugin, or beside an encoder or language model of other sizes"
                )

    def load_into(self, part: nn.Module) -> None:
        """Give ``part`` the checkpoint's weights."""
        state = _state(part)
        with torch.no_grad(), self._open() as file:
            for name, value in state.items():
                value.copy_(file.get_tensor(f"{self.kind}.{name}"))

    def record(self) -> dict[str, Any]:
        """Where the weights came from, for run.json; the folder's place says nothing elsewhere, so its name stands alone."""
        return {
            "checkpoint": self.folder.name,
            "recipe": self.recipe,
            "use": self.part.use,
            "license": self.license,
            "sha256": hash_file(self.folder / WEIGHTS),
        }

    @property
    def _key(self) -> str:
        return f"{self.kind}.weights"

    def _open(self) -> Any:
        path = self.folder / WEIGHTS
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self._key}: {path} cannot be read: {error}") from None

    def _shapes(self) -> dict[str, list[int]]:
        prefix = f"{self.kind}."
        with self._open() as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - it is no mapping
            return {name.removeprefix(prefix): list(file.get_slice(name).get_shape()) for name in names}


def inherit_options(recipe: Recipe) -> tuple[Recipe, dict[str, WarmStart]]:
    """The recipe with the options of each part that names ``weights`` taken over from there, and those sources by kind.

    Raises:
        CheckpointError: no such folder, or no whole checkpoint in it.
        BadRecipe: the part there is another entry, or an option that is set here differs.
    """
    sources = {}
    for kind, part in recipe.parts().items():
        if part.weights is None:
            continue
        key = f"{kind}.weights"
        try:
            contents = read_checkpoint(local_folder(part.weights))
            theirs = Recipe.of(contents.recipe, origin=part.weights).pinned(contents.lock)
        except CheckpointError as error:
            raise type(error)(f"{key}: {error}; name a folder that `mmzoo train` or model.save wrote") from None
        license = licence.join(row.license for row in licence.of_model(theirs, contents.run))
        source = WarmStart(kind, contents.folder, getattr(theirs, kind), theirs.name or "unnamed", license)
        recipe = recipe.model_copy(update={kind: _adopted(kind, part, source)})
        sources[kind] = source
    return recipe, sources


def without_sources(recipe: Recipe) -> Recipe:
    """The recipe of a model whose parts have their weights: it names no other checkpoint, and of what came from one no
    pretrained weights are wanted."""
    for kind, part in recipe.parts().items():
        if part.weights is not None:
            recipe = recipe.with_part(kind, weights=None, pretrained=False)
    return recipe


def _adopted(kind: str, part: PartConfig, source: WarmStart) -> PartConfig:
    """The part with every option of its source; those that it sets itself must agree."""
    key, theirs = f"{kind}.weights", source.part
    (name, variant, revision), (their_name, _, _) = split_use(part.use), split_use(theirs.use)
    if name != their_name:
        raise BadRecipe(
            f"{key}: the {kind.replace('_', ' ')} of {source.folder} is '{theirs.use}', not '{part.use}'; "
            f"write use: {theirs.use}, or name another checkpoint"
        )
    use = part.use if variant or revision else theirs.use
    merged = part.with_options(**{**theirs.options, **part.options, "use": use})
    ours, there = (resolve(kind, p).options.model_dump(mode="json") for p in (merged, theirs))
    if differing := [option for option in there if ours[option] != there[option]]:
        said = "; ".join(f"{kind}.{o} is {_short(ours[o])} here and {_short(there[o])} there" for o in differing)
        raise BadRecipe(f"{key}: {source.folder} has other options: {said}. Leave them out to take over those of the checkpoint")
    return merged


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _state(part: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers that a checkpoint holds; shared ones once, by their first name."""
    first = {name for name, _ in part.named_parameters()}
    every = {name for name, _ in part.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in part.state_dict().items() if name not in every - first}
