"""The checkpoint folder: written so that a failure leaves the last good one, read so that damage is named.

    mmzoo.json          format, recipe, plugins with versions, lock of each backbone, size and sha256 of each file below
    model.safetensors   the weights that were trained (with ``full=True``: all)
    run.json            how it was trained and measured
    tokenizer files     of the language model
    README.md           the card
    config.json         ``model_type: mmzoo``, so that a hub counts downloads

Nothing in it is pickled, and nothing in it names code.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmzoo.checkpoints import screening
from mmzoo.checkpoints.header import Stored, read_header
from mmzoo.checkpoints.record import Record
from mmzoo.checkpoints.screening import CARD, CONFIG, MANIFEST, RUN, TOKENIZER_CONFIG, WEIGHTS
from mmzoo.errors import CheckpointError, MissingPlugin

FORMAT = 1
MAX_JSON = 64 << 20
CHECKPOINTS = "checkpoints"  # of a training that is not finished
STAGING = ".mmzoo-saving"
UNHASHED = frozenset({MANIFEST, CARD})  # the card is prose that people edit


T = TypeVar("T", bound=BaseModel)
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    """No other keys, and no other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class FileFacts(Strict):
    """What a file was when it was saved."""

    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Lock(Strict):
    """Where a backbone came from, and the sha256 of each of its files."""

    source: Annotated[str, Field(max_length=100)]
    id: Annotated[str, Field(max_length=1000)]
    commit: Annotated[str, Field(pattern=r"^[\w.+-]{1,100}$")] | None = None
    files: dict[str, Sha256]


class Manifest(Strict):
    """The contents of mmzoo.json."""

    format: int
    mmzoo: str
    recipe: dict[str, Any]
    plugins: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], Annotated[str, Field(pattern=r"^[\w.+!-]*$")]]
    lock: dict[Literal["encoder", "fusion", "language_model", "task"], Lock]
    full: bool
    files: dict[str, FileFacts]
    digest: str


@dataclass
class CheckpointContents:
    """A checkpoint folder, read and verified; ``weights`` are loaded on demand by `read_weights`."""

    folder: Path
    recipe: dict[str, Any]
    plugins: dict[str, str] = field(default_factory=dict)
    lock: dict[str, dict[str, Any]] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    full: bool = False


def write_checkpoint(
    folder: str | Path,
    *,
    recipe: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    plugins: Mapping[str, str],
    lock: Mapping[str, Any],
    run: Mapping[str, Any],
    card: str,
    save_tokenizer: Callable[[Path], Any] | None = None,
    full: bool = False,
) -> Path:
    """Write a checkpoint folder. Every file is complete in a staging folder before the first one is replaced.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; what was there before is still whole.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{STAGING}*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror or error}") from None
    try:
        save_file({name: value.contiguous() for name, value in weights.items()}, staging / WEIGHTS, {"format": "pt"})
        os.chmod(staging / WEIGHTS, 0o666 & ~umask())  # safetensors writes for the owner alone
        if save_tokenizer is not None:
            save_tokenizer(staging)
        if strange := [name for name in _names(staging) if not screening.known(name)]:
            raise CheckpointError(f"{folder}: the tokenizer wrote {strange[0]}, which a checkpoint cannot hold")
        _write_json(staging / RUN, run)
        _write_json(staging / CONFIG, {"model_type": "mmzoo", "architectures": ["MultimodalModel"]})
        (staging / CARD).write_text(card, encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "mmzoo": importlib.metadata.version("mmzoo"),
            "recipe": dict(recipe),
            "plugins": dict(plugins),
            "lock": dict(lock),
            "full": full,
            "files": {name: _facts(staging / name) for name in _names(staging) if name not in UNHASHED},
        }
        manifest["digest"] = _digest(manifest)
        _write_json(staging / MANIFEST, manifest)
        # The manifest goes last: a folder whose manifest is older than its files is refused, not half believed.
        for name in sorted(_names(staging), key=lambda name: (name == MANIFEST, name)):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / name, target)
    except (OSError, SafetensorError) as error:
        kept = " The checkpoint that was there is unchanged." if (folder / MANIFEST).exists() else ""
        raise CheckpointError(f"{folder}: saving failed: {error}.{kept} Free some space or choose another folder.") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def is_checkpoint(folder: str | Path) -> bool:
    return (Path(folder) / MANIFEST).is_file()


def read_checkpoint(folder: str | Path) -> CheckpointContents:
    """Read and verify a checkpoint folder: the format, every file's size and hash, and that its plugins are here.

    Raises:
        CheckpointError: a file is missing, truncated or altered, or the format is newer.
        MissingPlugin: a plugin that it needs is not installed.
    """
    folder = Path(folder).expanduser()
    manifest = verify_checkpoint(folder)
    check_plugins(manifest.plugins)
    lock: dict[str, dict[str, Any]] = {kind: entry.model_dump() for kind, entry in manifest.lock.items()}
    run = screening.read_json(folder / RUN, MAX_JSON, numbers=True)
    return CheckpointContents(folder, manifest.recipe, manifest.plugins, lock, run, manifest.full)


def verify_checkpoint(folder: Path) -> Manifest:
    """Check a checkpoint folder as `read` does, whether its plugins are installed or not.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    manifest = read_manifest(folder)
    for name, facts in manifest.files.items():
        check_file(folder, name, facts)
    for name in (CONFIG, TOKENIZER_CONFIG):
        screening.check_config(folder / name)
    screening.check_card(folder / CARD)
    stored_tensors(folder)
    validated(Record, screening.read_json(folder / RUN, MAX_JSON, numbers=True), folder / RUN)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, alone; none of the files that it lists has been looked at.

    Raises:
        CheckpointError: there is none, it was altered, it is of a newer format, or it lists a file that no checkpoint has.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder")
    screening.check_folder(folder)
    if not is_checkpoint(folder):
        if (folder / CHECKPOINTS).is_dir():
            raise CheckpointError(
                f"{folder}: its training is not finished; the same mmzoo train command with --resume goes on with it"
            )
        raise CheckpointError(f"{folder}: no {MANIFEST}; this is not a checkpoint folder, or it is incomplete")
    manifest = screening.read_json(folder / MANIFEST, MAX_JSON)
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            f"{folder}: format {version} is newer than this mmzoo reads ({FORMAT}); pip install --upgrade mmzoo"
        )
    if version != FORMAT:
        raise CheckpointError(f"{folder / MANIFEST}: format {str(version)[:80]!r} is unknown")
    if manifest.get("digest") != _digest(manifest):
        raise CheckpointError(f"{folder / MANIFEST}: was altered after it was saved (its digest does not match)")
    valid = validated(Manifest, manifest, folder / MANIFEST)
    if unlisted := {WEIGHTS, RUN} - set(valid.files):
        raise CheckpointError(f"{folder / MANIFEST}: does not list {sorted(unlisted)[0]}")
    screening.check_names(valid.files, str(folder / MANIFEST))
    if strange := [name for name in valid.files if name in UNHASHED or not screening.known(name)]:
        raise CheckpointError(f"{folder / MANIFEST}: lists {strange[0]!r}, which is no file of a checkpoint")
    return valid


def stored_tensors(folder: str | Path) -> dict[str, Stored]:
    """Type and shape of each tensor, from the header of the weights alone.

    Raises:
        CheckpointError: it is not a valid header.
    """
    return read_header(Path(folder) / WEIGHTS)


def read_weights(folder: str | Path, parameters: Container[str] = ()) -> dict[str, Tensor]:
    """The tensors of a checkpoint. ``parameters`` are the names of those that are trained: numbers, where a mask may be infinite.

    Raises:
        CheckpointError: the file is not valid safetensors, a tensor holds NaN, or a parameter holds infinity.
    """
    path = Path(folder) / WEIGHTS
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    for name, value in found.items():
        if not value.is_floating_point():
            continue
        if (~value.isfinite() if name in parameters else value.isnan()).any():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity; such a model gives no answers")
    return found


def update_run(folder: str | Path, run: Mapping[str, Any], card: str) -> None:
    """Replace the run record and the card of a checkpoint, keeping everything else."""
    folder = Path(folder)
    manifest = screening.read_json(folder / MANIFEST, MAX_JSON)
    try:
        _replace_json(folder / RUN, run)
        manifest["files"][RUN] = _facts(folder / RUN)
        manifest["digest"] = _digest(manifest)
        _replace_json(folder / MANIFEST, manifest)
        (folder / CARD).write_text(card, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{folder}: the run could not be recorded: {error}") from None


def hash_file(path: str | Path) -> str:
    """The sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_plugins(plugins: Mapping[str, str]) -> None:
    """Raises MissingPlugin, with the pip command, if one is not installed."""
    for name, version in plugins.items():
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise MissingPlugin(
                f"this checkpoint needs the plugin '{name}', which is not installed: pip install '{name}=={version}'"
            ) from None


def check_file(folder: Path, name: str, facts: FileFacts) -> None:
    """Raises CheckpointError if a file is not what the manifest says."""
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; the checkpoint is incomplete")
    length = path.stat().st_size
    if length != facts.size:
        word = "truncated" if length < facts.size else "altered"
        raise CheckpointError(f"{path}: is {word} ({length} bytes, {facts.size} were saved)")
    if hash_file(path) != facts.sha256:
        raise CheckpointError(f"{path}: was altered after it was saved (its sha256 does not match)")


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _facts(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": hash_file(path)}


def _digest(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def validated(schema: type[T], data: Any, path: Path) -> T:
    """Data as what it must be.

    Raises:
        CheckpointError: naming the file and the key.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(step)[:100] for step in problem["loc"])
        raise CheckpointError(f"{path}: {key}: {problem['msg']}") from None


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace_json(path: Path, data: Mapping[str, Any]) -> None:
    staging = path.with_name(f".{path.name}.new")
    try:
        _write_json(staging, data)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
