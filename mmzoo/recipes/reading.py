"""Read the recipe that a user names: a registered name, a file, a `Recipe`, a mapping, or parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mmzoo.common import parsing
from mmzoo.common.suggestions import did_you_mean
from mmzoo.errors import BadRecipe, PluginBroken
from mmzoo.interfaces.kinds import GROUPS, PARTS
from mmzoo.recipes.merging import merge_recipe
from mmzoo.recipes.schema import Recipe
from mmzoo.registry.manager import plugin_manager

MAX_RECIPE_BYTES = 8 << 20


def read_recipe(recipe: str | Path | Recipe | None = None, /, *, pretrained: bool | None = None, **changes: Any) -> Recipe:
    """Return the recipe that `build` would build from the same arguments.

    Raises:
        UnknownName: there is no recipe and no file of that name.
        BadRecipe: a key is missing, unknown or of a wrong type.
    """
    base, origin = _read_base(recipe)
    if pretrained is not None:
        changes["pretrained"] = pretrained
    keys = [*GROUPS, *Recipe.model_fields]
    if unknown := [key for key in changes if key not in keys]:
        advice = did_you_mean(unknown[0], keys) or f"the keys of a recipe are {', '.join(keys)}"
        raise BadRecipe(f"unknown key '{unknown[0]}'; {advice}")
    for key, value in changes.items():
        if key in PARTS and not isinstance(value, str | Mapping | BaseModel):
            raise BadRecipe(f"{key}: must be a name or a mapping, not {type(value).__name__}")
        if key in GROUPS.values() and not isinstance(value, Mapping):
            raise BadRecipe(f"{key}: must be a mapping from names to parts, not {type(value).__name__}")
        changes[key] = _plain(value)
    merged = merge_recipe(base, changes)
    if recipe is None and (missing := [part for part in PARTS if part not in merged and GROUPS.get(part) not in merged]):
        raise BadRecipe(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: name a recipe (`mmzoo list recipe`), "
            f"or each of {', '.join(PARTS)}"
        )
    return Recipe.of(merged, origin)


def _plain(value: Any) -> Any:
    """Return a change as plain data; it may hold `PartConfig` objects."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_none=True)
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


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


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a YAML or JSON file; raise `BadRecipe` if it cannot be read, is too large, is not valid, or is not a mapping."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise BadRecipe(f"{path}: larger than {MAX_RECIPE_BYTES >> 20} MiB, which is too large for a recipe")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecipe(f"{path}: cannot be read: {error}") from None
    try:
        data = parsing.parse(text, as_yaml=path.suffix != ".json")
    except ValueError as error:
        raise BadRecipe(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from None
    if not isinstance(data, dict):
        raise BadRecipe(f"{path}: a recipe is a mapping with encoder, fusion, language_model and task")
    return data
