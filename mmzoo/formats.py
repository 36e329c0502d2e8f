"""Checkpoints of other code, coming in and going out.

A format reads such a checkpoint to a model here that computes the same, or writes a model as one, or both. What it reads is
data: safetensors, JSON, and pickles that hold nothing but tensors. Sizes are compared before any weight is allocated.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from torch import Tensor

from mmzoo.backbones.repository import CONFIG_FILE, Source
from mmzoo.backbones.weights import first_names, names_in
from mmzoo.checkpoints.folder import is_checkpoint
from mmzoo.errors import BadRecipe, CheckpointError, PluginBroken
from mmzoo.interfaces.part import Options
from mmzoo.models.assemble import assemble
from mmzoo.models.load import load
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes import catalogue
from mmzoo.recipes.resolve import resolve
from mmzoo.recipes.schema import PartConfig, Recipe


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
        others = [other for other, kind in _formats() if way in kind.ways()]
        raise BadRecipe(f"format '{name}' does not {way}; these do: {', '.join(others)}")
    return cls(found.options)


def _formats() -> Iterator[tuple[str, type[Format]]]:
    """The registered formats by name, but for those that cannot be loaded."""
    for entry in catalogue.entries("format"):
        try:
            yield entry.name, entry.load()
        except PluginBroken:
            continue  # another plugin's broken entry is no help here


# What a source is


@dataclass(frozen=True)
class Clues:
    """What can be told of a source at no cost: its configuration, and the names of the tensors of a single file."""

    config: Mapping[str, Any] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()


def refused(source: str, why: str) -> CheckpointError:
    """The error for a source that is no checkpoint of the format asked for, saying what it looks like."""
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
        pass  # then it tells nothing
    names = [name for name, cls in _formats() if cls.recognises(clues)]
    kind = clues.config.get("model_type")
    looks = f"it looks like {' or '.join(names)}: mmzoo import {names[0]} {source}" if names else ""
    return CheckpointError(f"{source}: {why}" + (f"; {looks}" if looks else f"; its model_type is {kind!r}" if kind else ""))


def named(source: str) -> Source:
    """A folder or ``id[@revision]`` as a `Source`.

    Raises:
        CheckpointError: it is a file. SourceError: as `Source`.
    """
    if Path(source).expanduser().is_file():
        raise refused(source, "is a file, and this format is a folder")
    if Path(source).expanduser().is_dir():
        return Source(source)
    name, _, revision = source.partition("@")
    return Source(name, revision or None)


# Making the model


@dataclass(frozen=True)
class Found:
    """Where a weight of ours stands in a foreign checkpoint: under one of ``names``, or several that hold the same, and what is
    done ``with_it``."""

    names: tuple[str, ...]
    with_it: Callable[[Tensor], Tensor] = lambda value: value


def planned(recipe: Mapping[str, Any], label: str) -> MultimodalModel:
    """The model of ``recipe`` on the meta device: its sizes, and no weights.

    Raises:
        BadRecipe, DoesNotFit: as `mmzoo.build`.
    """
    return assemble(Recipe.of(recipe, label), meta=True)


def assembled(
    recipe: Mapping[str, Any],
    state: Mapping[str, Tensor],
    find: Callable[[str], Found | None],
    *,
    label: str,
    ignore: Callable[[str], bool] | None = None,
    tokenizer: Any = None,
) -> MultimodalModel:
    """The model of ``recipe`` with the weights ``state`` of other code.

    Args:
        find: for the name of a weight of ours, where it is found; None for one that the recipe brings itself.
        label: what the checkpoint is called in messages.
        ignore: which names of ``state`` mean nothing, such as buffers that are computed; None for none of them.
        tokenizer: for a language model whose option ``tokenizer`` is ``checkpoint``.

    Raises:
        CheckpointError: weights are missing, left over, or of another shape, listing them. DoesNotFit: as `mmzoo.build`.
    """
    chosen, plan = Recipe.of(recipe, label), planned(recipe, label)
    shapes = plan.state_dict()
    places = {name: place for name in plan.saved_names(full=True) if (place := find(name)) is not None}
    missing, used, problems = [], set(), []
    converted: dict[str, Tensor] = {}
    for name, place in places.items():
        there = [key for key in dict.fromkeys(place.names) if key in state]
        if not there:
            missing.append(place.names[0])
            continue
        used.update(there)
        key, value, wanted = there[0], state[there[0]], shapes[name]
        if value.layout != torch.strided or value.is_meta:
            problems.append(f"{key} is sparse, or has a shape and no numbers")
            continue
        if others := [other for other in there[1:] if not torch.equal(state[other], value)]:
            problems.append(f"{others[0]} holds other numbers than {key}, and the two are one weight")
            continue
        try:
            converted[name] = place.with_it(value)
        except (RuntimeError, IndexError, ValueError):  # too few dimensions for what is done with it
            problems.append(f"{key} is {list(value.shape)}")
            continue
        if converted[name].shape != wanted.shape:
            problems.append(f"{key} is {list(value.shape)}, its configuration makes {name} {list(wanted.shape)}")
        elif value.is_floating_point() != wanted.is_floating_point():
            problems.append(f"{key} is of the type {value.dtype}; quantised weights are not read")
    left = [key for key in state if key not in used and not (ignore is not None and ignore(key))]
    said = [
        f"{len(names)} {what}: {first_names(names)}"
        for names, what in ((missing, "keys are missing"), (left, "keys are unexpected"), (problems, "tensors do not fit"))
        if names
    ]
    if said:
        raise CheckpointError(f"{label}: " + "\n".join(said))
    with tempfile.TemporaryDirectory() as folder:
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        model = assemble(chosen, folder=Path(folder) if tokenizer is not None else None)
    model.load_state_dict(converted, strict=False)
    return model
