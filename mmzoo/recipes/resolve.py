"""Resolve a part's name to its entry, class and validated options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from mmzoo.errors import BadRecipe, PluginBroken
from mmzoo.interfaces.kinds import PARTS, kind_of
from mmzoo.recipes.schema import PartConfig, Recipe, explain
from mmzoo.registry.entries import Entry, split_use
from mmzoo.registry.manager import plugin_manager


@dataclass(frozen=True)
class Resolved:
    """Hold an entry, its imported class and its validated options."""

    entry: Entry
    cls: Any
    options: Any
    variant: str | None
    revision: str | None


def resolve_parts(recipe: Recipe) -> dict[str, Resolved]:
    """Resolve every part of a recipe, by key; errors as `resolve`."""
    return {key: resolve(kind_of(key), part, key=recipe.label(key)) for key, part in recipe.parts().items()}


def resolve(kind: str, part: PartConfig, *, key: str | None = None) -> Resolved:
    """Find an entry, import its class and validate the options.

    ``key`` is the part's key in the recipe, for messages; ``kind`` if None.

    Raises:
        UnknownName: there is no such entry.
        BadRecipe: an unknown option or a wrong type, with the recipe's key.
        PluginBroken: the entry's target cannot be imported or has no Options.
    """
    key = key or kind
    name, variant, revision = split_use(part.use)
    entry = plugin_manager().get(kind, name)
    cls = entry.load()
    schema = getattr(cls, "Options", None)
    if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
        raise PluginBroken(f"{entry.label} of plugin '{entry.plugin}': {entry.target} has no pydantic Options class")
    values: dict[str, Any] = dict(part.options)
    fields = schema.model_fields
    if variant == "" and "variant" in fields:
        raise BadRecipe(f"{key}.use: '{part.use}': name a variant after the colon (`mmzoo show {name}`)")
    for field, value in (("variant", variant), ("revision", revision)):
        if value is not None and field not in fields:
            raise BadRecipe(f"{key}.use: '{part.use}': {entry.label} has no {field}s; write '{name}'")
    chosen = variant or entry.variant
    if "variant" in fields and chosen is not None:
        values.setdefault("variant", chosen)
    elif "variant" in fields and fields["variant"].is_required() and not values.keys() & {"variant", "config"}:
        raise BadRecipe(f"{key}.use: '{name}' needs a variant: write '{name}:...' (`mmzoo show {name}`)")
    if revision is not None:
        values.setdefault("revision", revision)
    try:
        options = schema.model_validate(values)
    except ValidationError as error:
        known = [*fields, *(type(part).model_fields if kind in PARTS else ())]
        raise BadRecipe(explain(error, entry.label, prefix=key, known=known)) from None
    return Resolved(entry, cls, options, chosen, revision)
