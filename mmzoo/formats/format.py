"""Define `Format`, and import and export checkpoints of other code.

A format reads such a checkpoint into a model that computes the same, or writes a model as one, or both. It reads data only:
safetensors, JSON, and pickles that contain nothing but tensors. Sizes are compared before any weight is allocated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel
from safetensors import SafetensorError

from mmzoo.backbones.repository import CONFIG_FILE, Source
from mmzoo.backbones.weights import names_in
from mmzoo.checkpoints.folder import is_checkpoint
from mmzoo.common.files import staged_folder
from mmzoo.errors import BadRecipe, CheckpointError, PluginBroken
from mmzoo.interfaces import Options
from mmzoo.models.load import load
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes import catalogue
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig


@dataclass(frozen=True)
class Clues:
    """Hold what can be read from a source at no cost: its configuration, and the tensor names of a single file."""

    config: Mapping[str, Any] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()


class Format:
    """Define a kind of checkpoint, with the pydantic schema of its ``Options``. A subclass overrides `read`, `write`, or both."""

    Options: ClassVar[type[BaseModel]] = Options

    def __init__(self, options: Any) -> None:
        self.options = options

    @classmethod
    def ways(cls) -> list[str]:
        """Return ``import``, ``export``, or both."""
        methods = {"import": (cls.read, Format.read), "export": (cls.write, Format.write)}
        return [way for way, (own, base) in methods.items() if own is not base]

    @classmethod
    def recognises(cls, source: Clues) -> bool:
        """Return whether a source looks like this format, for the message if another format was named."""
        return False

    def read(self, source: str) -> MultimodalModel:
        """Return the model that ``source`` contains; `convert_checkpoint` builds it.

        Args:
            source: a file, a folder, or ``id[@revision]`` of a repository on the Hub.

        Raises:
            CheckpointError: it is damaged, or of another format.
            SourceError: it cannot be fetched.
            DoesNotFit: no registered parts compute the same.
        """
        raise NotImplementedError

    def write(self, model: MultimodalModel, folder: Path) -> None:
        """Write ``model`` into the empty ``folder``.

        Raises:
            DoesNotFit: the format cannot represent one of its parts.
        """
        raise NotImplementedError


def import_model(format: str, source: str | Path, **options: Any) -> MultimodalModel:
    """Return a model from a checkpoint of other code: ``import_model("llava", "llava-hf/llava-1.5-7b-hf")``.

    Args:
        format: the name of a registered format that can read.
        source: a file, a folder, or ``id[@revision]`` of a repository on the Hub.
        options: the format's own (``mmzoo show FORMAT``).

    Raises:
        UnknownName, BadRecipe: the format or an option is wrong.
        CheckpointError, SourceError, DoesNotFit: as `Format.read`.
    """
    return _format(format, "import", options).read(str(source))


def export_model(format: str, model: MultimodalModel | str | Path, folder: str | Path, **options: Any) -> Path:
    """Write a model, or a checkpoint folder of one, as a checkpoint of other code into a new or empty folder.

    Raises:
        UnknownName, BadRecipe: the format or an option is wrong.
        DoesNotFit: the format cannot represent a part; the message says which and why.
        CheckpointError: the folder is not empty, or cannot be written; nothing is left in it.
    """
    chosen = _format(format, "export", options)
    if not isinstance(model, MultimodalModel):
        model = load(model)
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: is not empty; an export needs a new folder")
    try:
        with staged_folder(folder) as staging:
            chosen.write(model, staging)
            if folder.exists():
                folder.rmdir()
            staging.rename(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written: {error}. Nothing was left in it") from None
    return folder


def _format(name: str, way: str, options: Mapping[str, Any]) -> Format:
    if foreign := sorted(set(options) & set(PartConfig.model_fields)):  # keys of a part, which no format has
        raise BadRecipe(f"format '{name}' has no option '{foreign[0]}'")
    resolved = resolve("format", PartConfig.of({**options, "use": name}, "options"), key=name)
    cls = resolved.cls
    if not (isinstance(cls, type) and issubclass(cls, Format)):
        raise PluginBroken(f"{resolved.entry.label} of plugin '{resolved.entry.plugin}': {resolved.entry.target} is not a Format")
    if way not in cls.ways():
        others = [other for other, kind in registered_formats() if way in kind.ways()]
        raise BadRecipe(f"format '{name}' does not {way}; these do: {', '.join(others)}")
    return cls(resolved.options)


def registered_formats() -> Iterator[tuple[str, type[Format]]]:
    """Yield the registered formats by name, without those that cannot be loaded."""
    for entry in catalogue.entries("format"):
        try:
            yield entry.name, entry.load()
        except PluginBroken:
            continue  # another plugin's broken entry must not hide the message


def not_this_format(source: str, why: str) -> CheckpointError:
    """Return the error for a source that does not have the requested format. The message says which format it looks like."""
    path = Path(source).expanduser()
    if is_checkpoint(path):
        return CheckpointError(f"{source}: {why}; it is a checkpoint of mmzoo: mmzoo.load('{source}')")
    clues = Clues()
    try:
        if path.is_file():
            clues = Clues(keys=frozenset(names_in(path)))
        elif path.is_dir() and isinstance(data := json.loads((path / CONFIG_FILE).read_text(encoding="utf-8")), dict):
            clues = Clues(config=data)
    except (OSError, ValueError, RecursionError):
        pass  # then nothing is known about it
    names = [name for name, cls in registered_formats() if cls.recognises(clues)]
    if names:
        why += f"; it looks like {' or '.join(names)}: mmzoo import {names[0]} {source}"
    elif kind := clues.config.get("model_type"):
        why += f"; its model_type is {kind!r}"
    return CheckpointError(f"{source}: {why}")


def open_source(source: str) -> Source:
    """Open a folder or ``id[@revision]`` as a `Source`; raise `CheckpointError` for a file."""
    path = Path(source).expanduser()
    if path.is_file():
        raise not_this_format(source, "is a file, and this format is a folder")
    name, _, revision = (source, "", "") if path.is_dir() else source.partition("@")
    return Source(name, revision or None)
