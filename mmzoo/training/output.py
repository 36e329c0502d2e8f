"""Handle a run's output folder: what it may hold before, its checkpoints, and what stays after a failure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME

from mmzoo.checkpoints.folder import CHECKPOINTS, SEEDS, is_checkpoint
from mmzoo.common.processes import is_main, together
from mmzoo.errors import CheckpointError, MmzooError, TrainingError
from mmzoo.recipes.schema import Recipe

RECIPE = "recipe.json"
PROGRESS = "progress.json"  # of a checkpoint: what `MultimodalTrainer.progress` sums up


def last_checkpoint(output: Path) -> str | None:
    """Return the newest complete checkpoint. A process that is killed may leave an incomplete one."""
    folders = [path for path in (output / CHECKPOINTS).glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    for folder in sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        with suppress(OSError, ValueError):
            json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # written last
            return str(folder)
    return None


def read_progress(checkpoint: str) -> dict[str, Any]:
    """Return `MultimodalTrainer.progress` as a checkpoint has it; nothing if it has none."""
    path = Path(checkpoint) / PROGRESS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def name_last_checkpoint(output: Path, advice: str = "; free some space, then continue with --resume") -> str:
    """Return the end of an error message: the last good checkpoint and ``advice``, or nothing if there is none."""
    last = last_checkpoint(output)
    return f". The last good checkpoint is {last}{advice}" if last else ""


def prepare_output(output: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> str | None:
    """Return the checkpoint to resume from, or None to start a new run. ``overwrite`` removes the checkpoints of an old run.

    Raises:
        TrainingError: the folder is taken, there is nothing to resume, or the recipe differs. CheckpointError: it cannot be used.
    """
    try:
        if output.exists() and not output.is_dir():
            raise TrainingError(f"{output} is a file; name a folder")
        if (output / SEEDS).is_file():
            raise TrainingError(f"{output} holds the models of several seeds; name another folder, or use --seeds as before")
        if resume:
            return _find_resumable(output, recipe)
        if overwrite and is_main():
            remove_checkpoints(output)
        elif not overwrite and (is_checkpoint(output) or last_checkpoint(output) is not None):
            content = "a model" if is_checkpoint(output) else "an unfinished run; --resume continues it"
            raise TrainingError(f"{output} already holds {content}; name another folder, or use --overwrite")
        return None
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be used: {error.strerror or error}") from None


def _find_resumable(output: Path, recipe: Recipe) -> str:
    """Return the last checkpoint of an unfinished run of the same recipe."""
    last = last_checkpoint(output)
    if last is None and is_checkpoint(output):
        raise TrainingError(f"{output} holds a finished model and nothing to resume; to train it again: --overwrite")
    if last is None:
        raise TrainingError(f"{output} holds no checkpoint to resume from; leave out --resume to start a new run")
    saved, current = json.loads((output / CHECKPOINTS / RECIPE).read_text(encoding="utf-8")), recipe.to_dict()
    if different := [key for key in sorted({*saved, *current}) if saved.get(key) != current.get(key)]:
        raise TrainingError(
            f"{output}: was started with another recipe (different: {', '.join(different)}); resume with the same recipe, or "
            "start a new run with --overwrite"
        )
    return last


@contextmanager
def unfinished_output(output: Path, recipe: Recipe) -> Iterator[None]:
    """Write the recipe that a resumed run must have. If the block fails, remove what cannot be resumed.

    Raises:
        CheckpointError: the folder cannot be written, or the block raised an error of reading or writing files.
        MmzooError: of a data worker, without the traceback that torch adds to its message.
    """
    new = not output.exists()
    with together():
        try:
            if is_main():
                (output / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
                (output / CHECKPOINTS / RECIPE).write_text(json.dumps(recipe.to_dict(), indent=2), encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{output}: cannot be written: {error.strerror or error}") from None
    try:
        yield
    except BaseException as error:
        if is_main() and last_checkpoint(output) is None:
            remove_checkpoints(output)
            if new:
                with suppress(OSError):  # it is not empty
                    output.rmdir()
        if isinstance(error, OSError | SafetensorError):
            raise CheckpointError(f"{output}: {error}{name_last_checkpoint(output)}") from None
        if isinstance(error, MmzooError) and "DataLoader worker" in str(error):
            kind = type(error)
            raise kind(str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip()) from None
        raise


def remove_checkpoints(output: Path) -> None:
    """Remove the checkpoints of a run that is finished or has learned nothing."""
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
