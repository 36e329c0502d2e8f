"""Find the checkpoints in a run's output folder."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from mmzoo.checkpoints.folder import CHECKPOINTS


def last_checkpoint(output: Path) -> str | None:
    """The newest checkpoint that is complete: a process that was killed may leave half of one."""
    found = [path for path in (output / CHECKPOINTS).glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        with suppress(OSError, ValueError):
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # the last file to be written
            return str(path)
    return None


def last_good(output: Path, then: str = "; free some space, then go on with --resume") -> str:
    last = last_checkpoint(output)
    return f". The last good checkpoint is {last}{then}" if last else ""
