"""What there is to choose from. Imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from mmzoo.errors import UnknownName
from mmzoo.interfaces.kinds import KINDS
from mmzoo.registry.entries import Entry
from mmzoo.registry.manager import plugin_manager


def kind_of(word: str) -> str:
    """``language-models``, ``Language_Model`` or ``language_model`` to ``language_model``.

    Raises:
        UnknownName: no such kind.
    """
    kind = word.lower().replace("-", "_")
    for known in KINDS:
        if kind in (known, known + "s"):
            return known
    raise UnknownName(f"unknown kind '{word}'; there are: {', '.join(k.replace('_', '-') for k in KINDS)}")


def entries(kind: str | None = None, pattern: str | None = None) -> list[Entry]:
    """Every registered entry, of one kind if given, whose name matches a wildcard if given."""
    return plugin_manager().registry.entries(None if kind is None else kind_of(kind), pattern)


def find(name: str) -> list[Entry]:
    """The entries of that exact name, of whatever kind.

    Raises:
        UnknownName: with the nearest names.
    """
    import difflib

    found = [entry for entry in entries() if entry.name == name]
    if not found:
        near = difflib.get_close_matches(name, sorted({entry.name for entry in entries()}), n=3, cutoff=0.55)
        advice = "did you mean " + " or ".join(f"'{n}'" for n in near) + "?" if near else "`mmzoo list` shows all"
        hint = plugin_manager().hint(name)
        raise UnknownName(f"unknown name '{name}'; {advice}" + (f"\n{hint}" if hint else ""))
    return found


def options(entry: Entry) -> list[dict[str, Any]]:
    """The options of an entry: name, type, default, description. This imports its class."""
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
    """A type as people write it."""
    text = getattr(annotation, "__name__", None) if not getattr(annotation, "__args__", None) else None
    return text or str(annotation).replace("typing.", "").replace("NoneType", "None")
