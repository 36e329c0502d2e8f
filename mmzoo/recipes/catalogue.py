"""List and describe the registered entries. Imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from mmzoo.common.suggestions import did_you_mean
from mmzoo.errors import UnknownName
from mmzoo.interfaces.kinds import KINDS
from mmzoo.registry.entries import Entry
from mmzoo.registry.manager import plugin_manager


def kind_of(word: str) -> str:
    """Return the kind ``language_model`` for ``language-models``, ``Language_Model``, ...; raise `UnknownName` for no kind."""
    kind = word.lower().replace("-", "_")
    for known in KINDS:
        if kind in (known, known + "s"):
            return known
    raise UnknownName(f"unknown kind '{word}'; there are: {', '.join(k.replace('_', '-') for k in KINDS)}")


def entries(kind: str | None = None, pattern: str | None = None) -> list[Entry]:
    """Return every registered entry, of one kind if given, whose name matches a wildcard if given."""
    return plugin_manager().registry.entries(None if kind is None else kind_of(kind), pattern)


def find(name: str) -> list[Entry]:
    """Return the entries of any kind with exactly this name; an `UnknownName` suggests similar names if there are none."""
    if not (matches := [entry for entry in entries() if entry.name == name]):
        advice = did_you_mean(name, {entry.name for entry in entries()}) or "`mmzoo list` shows all"
        raise UnknownName(f"unknown name '{name}'; {advice}\n{plugin_manager().hint(name)}".rstrip())
    return matches


def options(entry: Entry) -> list[dict[str, Any]]:
    """Return the options of an entry: name, type, default and description. This imports its class."""
    schema = getattr(entry.load(), "Options", None)
    if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
        return []
    rows = []
    for name, info in schema.model_fields.items():
        default = "required" if info.is_required() else info.get_default(call_default_factory=True)
        if name == "variant" and entry.variant:
            default = entry.variant
        rows.append({"name": name, "type": type_name(info.annotation), "default": default, "description": info.description or ""})
    return rows


def type_name(annotation: Any) -> str:
    """Return a type as people write it."""
    text = getattr(annotation, "__name__", None) if not getattr(annotation, "__args__", None) else None
    return text or str(annotation).replace("typing.", "").replace("NoneType", "None")
