"""Recognise which format a source has."""

from __future__ import annotations

import json
from pathlib import Path

from mmzoo.backbones.repository import CONFIG_FILE, Source
from mmzoo.backbones.weights import names_in
from mmzoo.checkpoints.folder import is_checkpoint
from mmzoo.errors import CheckpointError
from mmzoo.formats.format import Clues, registered_formats


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
    kind = clues.config.get("model_type")
    looks = f"it looks like {' or '.join(names)}: mmzoo import {names[0]} {source}" if names else ""
    return CheckpointError(f"{source}: {why}" + (f"; {looks}" if looks else f"; its model_type is {kind!r}" if kind else ""))


def open_source(source: str) -> Source:
    """Open a folder or ``id[@revision]`` as a `Source`.

    Raises:
        CheckpointError: it is a file.
        SourceError: as `Source`.
    """
    if Path(source).expanduser().is_file():
        raise not_this_format(source, "is a file, and this format is a folder")
    if Path(source).expanduser().is_dir():
        return Source(source)
    name, _, revision = source.partition("@")
    return Source(name, revision or None)
