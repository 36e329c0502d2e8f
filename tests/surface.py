"""What plugins and users may rely on, as text. ``python tests/surface.py`` rewrites `tests/public_surface.txt`.

A line that goes or changes breaks somebody: a new major version of the API, after a deprecation. A line that comes is a new minor
version, once the last one is published.
"""

import inspect
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

from pydantic import BaseModel

import mmzoo
from mmzoo import errors, testing
from mmzoo.backbones import repository, transformers_models, weights
from mmzoo.data import tokens, vocabulary
from mmzoo.models import sequence
from mmzoo.registry import hookspecs, settings
from mmzoo.registry.entries import KINDS
from mmzoo.registry.isolation import TIMEOUT

FILE = Path(__file__).parent / "public_surface.txt"
# What plugins may use beside the names of `mmzoo` itself: of each module these names, or all that it defines.
MODULES = {
    hookspecs: None,
    interfaces: None,
    inputs: ("Reader", "file_of", "name_of"),
    data: ("Dataset",),
    metrics: ("Metric",),
    formats: ("Format", "Clues", "Found", "refused", "assembled"),
    vocabulary: ("VocabularyOptions", "LearnedVocabulary", "default"),
    recipe: ("Recipe", "Part", "TrainOptions"),
    tokens: ("encode", "start_ids", "prompt_ids", "fit_length", "padded"),
    sequence: ("insert", "of_text", "before"),
    weights: None,
    repository: ("Source", "explained"),
    transformers_models: ("class_for", "config_of", "construct", "load"),
    testing: testing.__all__,
    errors: None,
}


def surface() -> str:
    lines = [f"API {mmzoo.API_VERSION}", f"environment: {settings.ONLY} {settings.CONFIG} {TIMEOUT} MMZOO_CACHE"]
    lines.append(f"kinds: {' '.join(KINDS)}")
    for name in sorted(mmzoo.__all__):
        if not inspect.ismodule(value := getattr(mmzoo, name)):
            lines += described(f"mmzoo.{name}", value)
    for module, chosen in MODULES.items():
        for name in sorted(chosen or [name for name, value in vars(module).items() if defined(module, name, value)]):
            value = getattr(module, name)
            own = name in mmzoo.__all__ and getattr(mmzoo, name) is value
            lines += [f"{module.__name__}.{name} is mmzoo.{name}"] if own else described(f"{module.__name__}.{name}", value)
    return "\n".join(lines) + "\n"


def defined(module, name, value) -> bool:
    return not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)


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
