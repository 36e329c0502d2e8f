"""Check a checkpoint against the model that its recipe makes: its tensors and the locks of its backbones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmzoo.checkpoints.folder import CheckpointContents
from mmzoo.checkpoints.header import DTYPES, StoredTensor
from mmzoo.checkpoints.screening import MANIFEST
from mmzoo.common.sanitize import sanitize
from mmzoo.errors import CheckpointError, SourceError
from mmzoo.interfaces import Part
from mmzoo.interfaces.kinds import key_of
from mmzoo.models.bases import local_bases
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.schema import Recipe

PRECISIONS = {torch.float32, torch.float16, torch.bfloat16}  # a model may be saved in any of them
MAX_COMPUTED = 2 << 30  # bytes


def check_tensors(stored: Mapping[str, StoredTensor], plan: MultimodalModel, where: Path, *, full: bool) -> torch.dtype | None:
    """Compare the tensors in the header of the file ``where`` with those of ``plan``, the recipe's model on the meta device.

    Returns the type that the model was saved in; None if it is the type that the recipe makes. A ``full`` file has all weights.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or of another type or shape, or the model computes huge buffers.
    """
    state, expected = plan.state_dict(), plan.saved_names(full=full)
    if wrong := sorted(set(expected) ^ set(stored)):
        raise CheckpointError(f"{where}: {len(wrong)} tensors are missing or unexpected: {sanitize(', '.join(wrong[:5]))[:500]}")
    saved_in = set()
    for name in expected:
        planned, dtype = state[name], DTYPES[stored[name].dtype]
        if tuple(planned.shape) != stored[name].shape:
            raise CheckpointError(f"{where}: {name} is {list(stored[name].shape)}, the recipe makes it {list(planned.shape)}")
        if dtype != planned.dtype and not {dtype, planned.dtype} <= PRECISIONS:
            planned_type = str(planned.dtype).removeprefix("torch.")
            raise CheckpointError(f"{where}: {name} is {stored[name].dtype}, the recipe makes it {planned_type}")
        if planned.is_floating_point():
            saved_in.add(None if dtype == planned.dtype else dtype)
    # Other buffers of parts without pretrained weights, such as masks, are computed when the part is made.
    computed = sum(
        buffer.numel() * buffer.element_size()
        for name, buffer in plan.named_buffers()
        if name not in stored and not plan.provenance.pretrained[key_of(name)]
    )
    if computed > MAX_COMPUTED:
        manifest = where.parent / MANIFEST
        raise CheckpointError(f"{manifest}: its recipe computes buffers of {computed} bytes; {MAX_COMPUTED} are allowed")
    return saved_in.pop() if len(saved_in) == 1 else None


@contextmanager
def explain_locked_backbone(contents: CheckpointContents) -> Iterator[None]:
    """Add the lock and the ways out to the error about a backbone that cannot be read where it was any more."""
    try:
        yield
    except SourceError as error:
        where = contents.folder / MANIFEST
        for key, names in local_bases(Recipe.of(contents.recipe, str(where)), contents.lock).items():
            for name in names:
                if f"'{name}'" in str(error):
                    raise SourceError(
                        f"{error}\n{where}: its {key.replace('_', ' ')} is built on the folder '{name}' of the machine that "
                        f"saved it. If you have it elsewhere: mmzoo.load(MODEL, bases={{'{name}': 'FOLDER or owner/name'}}), or "
                        f"--base {name}=FOLDER; its files must have the recorded sha256. Else its author can share it with "
                        "`mmzoo pack`, or with every weight: `mmzoo push --full`"
                    ) from None
        for key, facts in contents.lock.items():
            if facts["source"] == "hub" and f"'{facts['id']}'" in str(error):
                raise SourceError(
                    f"{error}\n{contents.folder / MANIFEST}: its {key.replace('_', ' ')} is locked to '{facts['id']}' "
                    f"at commit {facts['commit']}. If it was deleted, a machine that has it in its cache can still load it. "
                    "There, run `mmzoo pack MODEL out.mmzoo` to write everything into one file, or "
                    "`mmzoo push MODEL REPOSITORY --full` to share every weight"
                ) from None
        raise


def check_lock(lock: Mapping[str, Mapping[str, Any]], loaded: Mapping[str, Part]) -> None:
    """Compare the files that the ``loaded`` backbones came from with a checkpoint's lock: by part, an ``id`` and sha256 of files.

    Raises:
        CheckpointError: a part or a file of weights is not in the lock, or a locked file is missing or differs.
    """
    if unlocked := [key for key, part in loaded.items() if key not in lock and part.lock()]:
        raise CheckpointError(f"{unlocked[0].replace('_', ' ')}: the checkpoint has no lock for its pretrained weights")
    for key, facts in lock.items():
        if key not in loaded:
            continue
        locked, files = facts.get("files", {}), loaded[key].lock().get("files", {})
        if unlocked := [name for name in files if name.endswith(".safetensors") and name not in locked]:
            raise CheckpointError(f"{key.replace('_', ' ')} {facts.get('id')}: {unlocked[0]} is not in the checkpoint's lock")
        for name, digest in locked.items():
            if files.get(name) != digest:
                reason = "is missing" if name not in files else "is not the file that this checkpoint was trained with"
                raise lock_error(key, facts, name, reason)


def lock_error(key: str, facts: Mapping[str, Any], name: str, reason: str) -> CheckpointError:
    """Return the error for a backbone's file that differs from the lock."""
    digest = facts["files"][name][:12]
    return CheckpointError(f"{key.replace('_', ' ')} {facts.get('id')}: {name} {reason} (locked sha256 {digest}...)")
