"""Merge changes into a recipe: nested mappings and ``KEY=VALUE`` pairs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import yaml

from mmzoo.errors import BadRecipe
from mmzoo.interfaces.kinds import PARTS


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes`` merged key by key. If a part names another entry, the old entry's options are dropped."""
    merged = copy.deepcopy(dict(base))
    for key, value in changes.items():
        old: Any = merged.get(key)
        if isinstance(old, str) and key in PARTS:
            old = {"use": old}
        nested = isinstance(value, Mapping) and isinstance(old, Mapping)
        if nested and (key not in PARTS or value.get("use", old.get("use")) == old.get("use")):
            merged[key] = merge(old, value)
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
