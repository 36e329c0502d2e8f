"""What a checkpoint stores, beside what its recipe makes: its tensors by name, type and shape, and the locks of its backbones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmzoo.checkpoints.folder import CheckpointContents
from mmzoo.checkpoints.header import Stored
from mmzoo.checkpoints.screening import MANIFEST
from mmzoo.errors import BadRecipe, CheckpointError, DoesNotFit, PluginBroken, SourceError, UnknownName
from mmzoo.interfaces.part import Part
from mmzoo.models.model import MultimodalModel

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
HALVES = {torch.float32, torch.float16, torch.bfloat16}
MAX_COMPUTED = 2 << 30


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What is wrong with a recipe is said of the file that it stands in."""
    try:
        yield
    except (BadRecipe, UnknownName, DoesNotFit, PluginBroken) as error:
        raise type(error)(f"{path}: {error}") from error


def check_tensors(stored: Mapping[str, Stored], plan: MultimodalModel, where: Path, *, full: bool) -> torch.dtype | None:
    """Compare what a file holds with what the recipe makes, on the meta device: nothing is allocated yet.

    Returns:
        The type that the model was saved in, None if that is the recipe's own.
    """
    state, expected = plan.state_dict(), plan.saved_names(full=full)
    if wrong := sorted(set(expected) ^ set(stored)):
        raise CheckpointError(f"{where}: {len(wrong)} tensors are missing or unexpected: {', '.join(wrong[:5])}")
    changed = set()
    for name in expected:
        made, found = state[name], stored[name]
        if tuple(made.shape) != found.shape:
            raise CheckpointError(f"{where}: {name} is {list(found.shape)}, the recipe makes it {list(made.shape)}")
        dtype = DTYPES[found.dtype]
        if dtype != made.dtype and not {dtype, made.dtype} <= HALVES:
            raise CheckpointError(
                f"{where}: {name} is {found.dtype}, the recipe makes it {str(made.dtype).removeprefix('torch.')}"
            )
        if made.is_floating_point():
            changed.add(None if dtype == made.dtype else dtype)
    # Every other tensor of a part without pretrained weights is computed when the part is made, such as a mask.
    computed = sum(
        buffer.numel() * buffer.element_size()
        for name, buffer in plan.named_buffers()
        if name not in stored and not plan.provenance.pretrained[name.split(".", 1)[0]]
    )
    if computed > MAX_COMPUTED:
        raise CheckpointError(f"{where.parent / MANIFEST}: its recipe computes buffers of {computed} bytes")
    return next(iter(changed)) if len(changed) == 1 else None


@contextmanager
def locked(contents: CheckpointContents) -> Iterator[None]:
    """A backbone that cannot be fetched any more is said to be locked, and what can be done."""
    try:
        yield
    except SourceError as error:
        for kind, facts in contents.lock.items():
            if facts["source"] == "hub" and f"'{facts['id']}'" in str(error):
                raise SourceError(
                    f"{error}\n{contents.folder / MANIFEST}: its {kind.replace('_', ' ')} is locked to '{facts['id']}'"
                    f" at commit {facts['commit']}. If that is gone for good, a machine that has it in its cache still loads "
                    "it: there, `mmzoo pack MODEL out.mmzoo` puts all of it into one file, and `mmzoo push MODEL REPOSITORY "
                    "--full` shares every weight"
                ) from None
        raise


def check_lock(lock: Mapping[str, Mapping[str, Any]], loaded: Mapping[str, Part]) -> None:
    if unlocked := [kind for kind, part in loaded.items() if kind not in lock and part.lock()]:
        raise CheckpointError(f"{unlocked[0].replace('_', ' ')}: the checkpoint has no lock for its pretrained weights")
    for kind, facts in lock.items():
        if kind not in loaded:
            continue
        now = loaded[kind].lock().get("files", {})
        if unlocked := [name for name in now if name.endswith(".safetensors") and name not in facts.get("files", {})]:
            raise CheckpointError(f"{kind.replace('_', ' ')} {facts.get('id')}: {unlocked[0]} is not in the checkpoint's lock")
        for name, digest in facts.get("files", {}).items():
            if now.get(name) != digest:
                why = "is not there" if name not in now else "is not the file that this checkpoint was trained with"
                raise not_locked(kind, facts, name, why)


def not_locked(kind: str, facts: Mapping[str, Any], name: str, why: str) -> CheckpointError:
    locked = facts["files"][name]
    return CheckpointError(f"{kind.replace('_', ' ')} {facts.get('id')}: {name} {why} (locked sha256 {locked[:12]}...)")
