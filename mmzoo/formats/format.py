"""Define `Format`, and import and export checkpoints of other code.

A format reads such a checkpoint to a model here that computes the same, or writes a model as one, or both. What it reads is
data: safetensors, JSON, and pickles that hold nothing but tensors. Sizes are compared before any weight is allocated.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel
from safetensors import SafetensorError

from mmzoo.errors import BadRecipe, CheckpointError, PluginBroken
from mmzoo.interfaces.part import Options
from mmzoo.models.load import load
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes import catalogue
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig


@dataclass(frozen=True)
class Clues:
    """What can be told of a source at no cost: its configuration, and the names of the tensors of a single file."""

    config: Mapping[str, Any] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()


class Format:
    """A kind of checkpoint. A subclass overrides `read`, `write`, or both.

    Class attributes:
        Options: the pydantic schema of what a user can choose, a subclass of `mmzoo.interfaces.part.Options`.
    """

    Options: ClassVar[type[BaseModel]] = Options

    def __init__(self, options: Any) -> None:
        self.options = options

    @classmethod
    def ways(cls) -> list[str]:
        """``import``, ``export``, or both."""
        return [
            way for way, own, base in (("import", cls.read, Format.read), ("export", cls.write, Format.write)) if own is not base
        ]

    @classmethod
    def recognises(cls, source: Clues) -> bool:
        """Whether a source looks like this format, for the message where another one was named."""
        return False

    def read(self, source: str) -> MultimodalModel:
        """The model that ``source`` (a file, a folder, or ``id[@revision]`` of a repository on the Hub) holds; `assembled`
        makes it.

        Raises:
            CheckpointError: it is damaged, or of another kind. DoesNotFit: no parts here compute the same.
        """
        raise NotImplementedError

    def write(self, model: MultimodalModel, folder: Path) -> None:
        """Write ``model`` into the empty ``folder``.

        Raises:
            DoesNotFit: the format has no place for one of its parts.
        """
        raise NotImplementedError


def import_model(format: str, source: str | Path, **options: Any) -> MultimodalModel:
    """A model from a checkpoint of other code: ``import_model("llava", "llava-hf/llava-1.5-7b-hf")``.

    Args:
        format: the name of a registered format that reads.
        source: a file, a folder, or ``id[@revision]`` of a repository on the Hub.
        options: the format's own (``mmzoo show FORMAT``).

    Raises:
        UnknownName, BadRecipe: the format or an option. CheckpointError: what is wrong with the checkpoint.
        SourceError: it cannot be fetched. DoesNotFit: no parts here compute the same.
    """
    return _format(format, "import", options).read(str(source))


def export_model(format: str, model: MultimodalModel | str | Path, folder: str | Path, **options: Any) -> Path:
    """Write a model, or a checkpoint folder of one, as a checkpoint of other code, into a new or empty folder.

    Raises:
        UnknownName, BadRecipe: the format or an option. DoesNotFit: the format has no place for a part, saying which and why.
        CheckpointError: the folder holds something, or cannot be written; nothing is left there.
    """
    chosen = _format(format, "export", options)
    if not isinstance(model, MultimodalModel):
        model = load(model)
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: is not empty; an export needs a new folder")
    staging = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        chosen.write(model, staging)
        staging.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        staging.rename(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written: {error}. Nothing was left there") from None
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return folder


def _format(name: str, way: str, options: Mapping[str, Any]) -> Format:
    if foreign := sorted(set(options) & set(PartConfig.model_fields)):  # a part's keys, which no format has
        raise BadRecipe(f"format '{name}' has no option '{foreign[0]}'")
    found = resolve("format", PartConfig.of({**options, "use": name}, "options"), key=name)
    cls = found.cls
    if not (isinstance(cls, type) and issubclass(cls, Format)):
        raise PluginBroken(f"{found.entry.label} of plugin '{found.entry.plugin}': {found.entry.target} is no Format")
    if way not in cls.ways():
        others = [other for other, kind in registered_formats() if way in kind.ways()]
        raise BadRecipe(f"format '{name}' does not {way}; these do: {', '.join(others)}")
    return cls(found.options)


def registered_formats() -> Iterator[tuple[str, type[Format]]]:
    """The registered formats by name, but for those that cannot be loaded."""
    for entry in catalogue.entries("format"):
        try:
            yield entry.name, entry.load()
        except PluginBroken:
            continue  # another plugin's broken entry is no help here
