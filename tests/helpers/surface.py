"""What plugins and users may rely on, as text. ``python tests/helpers/surface.py`` rewrites `tests/helpers/public_surface.txt`.

A line that goes or changes breaks somebody: a new major version of the API, after a deprecation. A line that comes is a new minor
version, once the last one is published.
"""

import inspect
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

from pydantic import BaseModel

import mmzoo
from mmzoo import api, testing
from mmzoo.interfaces.kinds import KINDS
from mmzoo.registry import hookspecs, settings
from mmzoo.registry.isolation import TIMEOUT

FILE = Path(__file__).parent / "public_surface.txt"
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("mmzoo_"))


def surface() -> str:
    """Return every name that users, plugins and their tests may rely on, with signatures, as text."""
    lines = [f"API {mmzoo.API_VERSION}", f"environment: {settings.ONLY} {settings.CONFIG} {TIMEOUT} MMZOO_CACHE"]
    lines.append(f"kinds: {' '.join(KINDS)}")
    lines += [f"def hook {name}{signature(getattr(hookspecs, name))}" for name in HOOKS]
    shown = {}
    for module, names in ((mmzoo, mmzoo.__all__), (api, api._NAMES), (testing, testing.__all__)):
        for name in sorted(names):
            value, label = getattr(module, name), f"{module.__name__}.{name}"
            if inspect.ismodule(value):
                continue
            if (key := id(value)) in shown and (inspect.isclass(value) or callable(value)):
                lines.append(f"{label} is {shown[key]}")
                continue
            shown[key] = label
            lines += described(label, value)
    for name, value in vars(mmzoo.errors).items():
        if inspect.isclass(value) and id(value) not in shown:
            lines += described(f"mmzoo.errors.{name}", value)
    return "\n".join(lines) + "\n"


def described(name, value) -> list[str]:
    if inspect.isclass(value):
        return [f"class {name}({', '.join(base.__name__ for base in value.__bases__)})", *members(name, value)]
    if callable(value) and value.__module__.startswith("mmzoo"):
        return [f"def {name}{signature(value)}"]
    return [f"{name}: {type(value).__name__}"]


def members(name, cls) -> list[str]:
    """What a class itself adds to its bases: fields, methods and properties that may be relied on."""
    lines = []
    if issubclass(cls, BaseModel):
        for key in sorted(key for key in cls.model_fields if key in inspect.get_annotations(cls)):
            required = "required" if cls.model_fields[key].is_required() else "optional"
            lines.append(f"  {name}.{key}: {inspect.get_annotations(cls)[key]} ({required})")
        return lines
    if is_dataclass(cls):
        for item in fields(cls):
            required = item.default is MISSING and item.default_factory is MISSING
            lines.append(f"  {name}.{item.name}: {item.type} ({'required' if required else 'optional'})")
    for key, member in sorted(vars(cls).items()):
        if (key.startswith("_") and key != "__init__") or (key == "__init__" and is_dataclass(cls)):
            continue
        if isinstance(member, property):
            lines.append(f"  {name}.{key} -> {inspect.get_annotations(member.fget).get('return', '')}")
        elif isinstance(member, classmethod | staticmethod):
            lines.append(f"  {type(member).__name__} {name}.{key}{signature(member.__func__)}")
        elif inspect.isfunction(member):
            lines.append(f"  {name}.{key}{signature(member)}")
        elif key in inspect.get_annotations(cls) and not is_dataclass(cls):
            lines.append(f"  {name}.{key}: {inspect.get_annotations(cls)[key]}")
    return lines


def signature(function) -> str:
    return str(inspect.signature(function)).replace("'", "")


if __name__ == "__main__":
    FILE.write_text(surface(), encoding="utf-8")
    print(f"written: {FILE}")
