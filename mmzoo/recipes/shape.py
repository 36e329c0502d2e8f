"""Convert recipes, as plain data, between the short form (``encoder``, ``fusion``, ``task``) and the long one (``encoders``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmzoo.interfaces.kinds import GROUPS
from mmzoo.registry.entries import split_use
from mmzoo.registry.manager import plugin_manager

PART_NAME = "[a-z][a-z0-9_-]{0,99}"
ALL = "all"  # the name of a fusion that serves every encoder


def lengthen(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe in the long form. An encoder's name is its modality, a task's its entry's name.

    Raises:
        ValueError: both forms of one key are given, or a part of the short form names no entry.
    """
    long = dict(data)
    for kind, group in GROUPS.items():
        if kind not in long:
            continue
        if group in long:
            raise ValueError(f"{kind} and {group} are both given; write all of them under {group}")
        part = long.pop(kind)
        if isinstance(part, Mapping) and "use" not in part:
            raise ValueError(f"{kind}.use: is missing; name an entry, or write several by name under {group}")
        long[group] = {default_name(kind, part): part}
    return long


def shorten(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe in which a kind of part that has one member, of the default name, is in the short form."""
    short = dict(data)
    encoders = short.get("encoders")
    for kind, group in GROUPS.items():
        several = short.get(group)
        if kind in short or not isinstance(several, Mapping) or len(several) != 1:  # both forms are refused later
            continue
        ((name, part),) = several.items()
        default = default_name(kind, part)
        if kind == "fusion" and isinstance(encoders, Mapping) and len(encoders) == 1:
            default = name  # of the only encoder
        if name == default:
            short = {(kind if key == group else key): (part if key == group else value) for key, value in short.items()}
    return short


def default_name(kind: str, part: Any) -> str:
    """Return the name that a part has in the long form if it is given in the short one."""
    if kind == "fusion":
        return ALL
    use = part.get("use") if isinstance(part, Mapping) else getattr(part, "use", part)
    if not isinstance(use, str) or not use:
        return kind  # the schema says what is wrong
    name = split_use(use)[0]
    if kind == "encoder":
        known = {entry.name: entry.modality for entry in plugin_manager().registry.entries("encoder")}
        name = known.get(name, "")
    return name if re.fullmatch(PART_NAME, name) else "image" if kind == "encoder" else kind
