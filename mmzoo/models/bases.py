"""Name the repositories and folders that a model is built on, give others in their place, and save it without its local folders.

A checkpoint leaves frozen weights where they came from. A folder of the author's machine is nowhere else, so what is shared must
not depend on one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmzoo.backbones.repository import Source, is_local
from mmzoo.backbones.weights import quiet
from mmzoo.checkpoints.folder import CheckpointContents
from mmzoo.checkpoints.screening import MANIFEST
from mmzoo.errors import BadRecipe, CheckpointError
from mmzoo.recipes.schema import PartConfig, Recipe
from mmzoo.registry.entries import split_use

NO_BASES = {"checkpoint", "bytes"}  # values of the option ``tokenizer`` that are no repository or folder
Locks = Mapping[str, Mapping[str, Any]]


def bases_of(recipe: Recipe, lock: Locks) -> dict[str, list[str]]:
    """Return by part what it is built on, as the recipe and the lock name it: its model, and another's tokenizer."""
    bases: dict[str, list[str]] = {}
    for key, part in recipe.parts().items():
        model = None if part.options.get("config") is not None else lock[key]["id"] if key in lock else _variant(part)
        names = [model, _tokenizer(part)]
        if names := [name for name in names if name]:
            bases[key] = names
    return bases


def local_bases(recipe: Recipe, lock: Locks) -> dict[str, list[str]]:
    """Return by part the folders that it is built on."""
    sources = {facts["id"]: facts.get("source") for facts in lock.values()}
    local = {
        key: [name for name in names if (sources[name] == "folder" if sources.get(name) else is_local(name))]
        for key, names in bases_of(recipe, lock).items()
    }
    return {key: names for key, names in local.items() if names}


def replace_bases(contents: CheckpointContents, bases: Mapping[str, str | Path]) -> CheckpointContents:
    """Return the contents of a checkpoint with other bases, by the names of the recorded ones.

    A base is a folder, or ``owner/name[@REVISION]``. The sha256 of files stay in the lock, so that other files are refused.

    Raises:
        BadRecipe: the checkpoint is built on nothing of that name.
    """
    recipe, lock = (
        Recipe.of(contents.recipe, str(contents.folder / MANIFEST)),
        {key: dict(facts) for key, facts in contents.lock.items()},
    )
    used = {name for names in bases_of(recipe, lock).values() for name in names}
    if unknown := sorted(set(bases) - used):
        raise BadRecipe(f"bases: this checkpoint is built on no '{unknown[0]}', but on {', '.join(sorted(used)) or 'nothing'}")
    for old, new in ((old, str(new)) for old, new in bases.items()):
        name, _, revision = (new, "", "") if is_local(new) else new.partition("@")
        for key, part in recipe.parts().items():
            if key in lock:
                prefix = f"{old}:"  # of the files of a tokenizer from elsewhere
                files = {f"{name}:{file[len(prefix) :]}" if file.startswith(prefix) else file: digest
                         for file, digest in lock[key]["files"].items()}  # fmt: skip
                lock[key]["files"] = files
            changes: dict[str, Any] = {"tokenizer": new} if _tokenizer(part) == old else {}
            if old in (lock.get(key, {}).get("id"), _variant(part)):
                dropped = {option: value for option, value in part.options.items() if option not in ("variant", "revision")}
                part = type(part).of({**_declared(part), **dropped}, key)
                changes["use"] = f"{split_use(part.use)[0]}:{new}"
                if key in lock:
                    source = "folder" if is_local(new) else "hub"
                    lock[key] |= {"source": source, "id": name, "commit": revision or None}
            if changes:
                recipe = recipe.replace_part(key, part.with_options(**changes))
    return replace(contents, recipe=recipe.to_dict(), lock=lock)


def check_tokens(contents: CheckpointContents, model: Any) -> None:
    """Compare the tokenizer of a replaced base with the one in the checkpoint, where no hash does: no weights are the base's.

    Raises:
        CheckpointError: it has other tokens.
    """
    if "language_model" in contents.lock or "language_model" not in bases_of(model.recipe, {}):
        return
    with quiet():  # the library warns that it does not know the type in the folder's config.json
        saved = Source(str(contents.folder)).tokenizer()
    if saved.get_vocab() != model.language_model.tokenizer.get_vocab():
        name = bases_of(model.recipe, {})["language_model"][-1]
        raise CheckpointError(f"bases: '{name}' has other tokens than the tokenizer that this checkpoint was saved with")


def standalone(model: Any) -> tuple[Recipe, dict[str, dict[str, Any]]]:
    """Return the recipe and the lock of a checkpoint that holds every weight of a model: a part that is built on a folder has its
    configuration in the recipe, if its class can be built from one, and its tokenizer in the checkpoint."""
    recipe, lock = model.recipe, model.lock()
    for key in local_bases(recipe, lock):
        part, options = recipe.parts()[key], model.part(key).standalone_options()
        if options is None:
            continue
        name, own = split_use(part.use)[0], _variant(part)
        # The folder's name stays, since its weights are not those of the entry's default variant, nor of its licence.
        local = own is not None and (lock[key]["source"] == "folder" if key in lock else is_local(own))
        use = f"{name}:./{re.sub(r'[^A-Za-z0-9_.-]', '-', Path(str(own)).name)}" if local else part.use.partition("@")[0]
        recipe = recipe.replace_part(key, type(part).of({**_declared(part), **options, "use": use}, key))
        lock.pop(key, None)
    return recipe, lock


def _declared(part: PartConfig) -> dict[str, Any]:
    """Return the keys of a part that are not its entry's options."""
    return {key: value for key, value in part.model_dump(exclude_none=True).items() if key in type(part).model_fields}


def _variant(part: PartConfig) -> str | None:
    return part.options.get("variant") or split_use(part.use)[1]


def _tokenizer(part: PartConfig) -> str | None:
    """Return the repository or folder of another tokenizer, without its revision."""
    chosen = part.options.get("tokenizer")
    return chosen.partition("@")[0] if isinstance(chosen, str) and chosen not in NO_BASES else None
