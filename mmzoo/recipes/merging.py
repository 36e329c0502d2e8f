"""Merge changes into a recipe: nested mappings and ``KEY=VALUE`` pairs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import yaml

from mmzoo.errors import BadRecipe
from mmzoo.interfaces.kinds import GROUPS, PARTS
from mmzoo.recipes.shape import default_name, shorten


def merge_recipe(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with changes; either may be in the short or the long form (`mmzoo.recipes.shape`).

    A part of the short form replaces or changes the only one of its kind; parts of the long form are added by name, or removed by
    None.

    Raises:
        BadRecipe: the only part of a kind is changed where there are several.
    """
    base, changes = shorten(base), dict(changes)
    for kind, group in GROUPS.items():
        changed = changes.get(kind)
        if group in changes and kind in base:
            names = list(base["encoders"]) if kind == "fusion" and "encoders" in base else [default_name(kind, base[kind])]
            if kind == "fusion" and "encoder" in base:
                names = [default_name("encoder", base["encoder"])]
            base = {**base, group: dict.fromkeys(names, base[kind])}
            del base[kind]
        elif changed is not None and group in base and len(base[group]) == 1:
            changes = {**changes, group: dict.fromkeys(base[group], changed)}
            del changes[kind]
        elif changed is not None and group in base:
            several = ", ".join(f"{group}.{name}" for name in base[group])
            raise BadRecipe(f"{kind}: this recipe has several; name one: {several}")
    return merge(base, changes)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any], *, of_parts: bool = False) -> dict[str, Any]:
    """Return ``base`` with ``changes`` merged key by key. If a part names another entry, the old entry's options are dropped.

    ``of_parts`` says that the values are parts.
    """
    merged = copy.deepcopy(dict(base))
    for key, value in changes.items():
        old: Any = merged.get(key)
        part = of_parts or key in PARTS
        if part and isinstance(old, str):
            old = {"use": old}
        nested = isinstance(value, Mapping) and isinstance(old, Mapping)
        if nested and (not part or value.get("use", old.get("use")) == old.get("use")):
            merged[key] = merge(old, value, of_parts=not part and key in GROUPS.values())
        elif of_parts and value is None:
            merged.pop(key, None)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def assignments(pairs: list[str], flag: str = "--set") -> dict[str, Any]:
    """Parse pairs such as ``["training.epochs=3"]`` into nested data; raise `BadRecipe` without ``=`` or for invalid YAML."""
    nested: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            example = "training.learning_rate=1e-3" if flag == "--set" else "text_column=question"
            raise BadRecipe(f"{flag} {pair}: write KEY=VALUE, e.g. {flag} {example}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise BadRecipe(f"{flag} {key}: {text!r} is not a YAML value: {error}") from None
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
            with contextlib.suppress(ValueError):
                value = float(value)
        at, (*path, last) = nested, key.split(".")
        for step in path:
            at = at.setdefault(step, {})
            if not isinstance(at, dict):
                raise BadRecipe(f"{flag} {key}: '{step}' was already given a value")
        at[last] = value
    return nested
