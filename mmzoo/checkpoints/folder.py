"""Write checkpoint folders so that a failed write leaves the previous checkpoint whole, and verify them so that damage is named.

    mmzoo.json          format, recipe, plugins with versions, lock of each backbone, size and sha256 of each file below
    model.safetensors   the weights that were trained (with ``full=True``: all)
    run.json            how the model was trained and evaluated
    tokenizer files     of the language model
    README.md           the model card
    config.json         ``model_type: mmzoo``, so that a hub counts downloads

Nothing in it is pickled, and nothing in it names code.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmzoo.checkpoints import screening
from mmzoo.checkpoints.header import StoredTensor, read_header
from mmzoo.checkpoints.record import RunRecord
from mmzoo.checkpoints.screening import CARD, CONFIG, MANIFEST, RUN, TOKENIZER_CONFIG, WEIGHTS
from mmzoo.common.files import STAGING, hash_file, staged_file, staged_folder, umask
from mmzoo.errors import CheckpointError, MissingPlugin
from mmzoo.interfaces.kinds import GROUPS, MAX_PARTS

FORMAT = 2
MAX_JSON = 64 << 20  # bytes
CHECKPOINTS = "checkpoints"  # the folder of an unfinished training
SEEDS = "seeds.json"  # of a folder that holds a model for each seed
UNHASHED = frozenset({MANIFEST, CARD})  # people may edit the card

Schema = TypeVar("Schema", bound=BaseModel)
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Distribution = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Version = Annotated[str, Field(pattern=r"^[\w.+!-]*$")]
PartKey = Annotated[str, Field(pattern=r"^(language_model|(encoders|fusions|tasks)\.[a-z][a-z0-9_-]{0,99})$")]
Commit = Annotated[str, Field(pattern=r"^[\w.+-]{1,100}$")]


class StrictModel(BaseModel):
    """Refuse unknown keys and values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class FileFacts(StrictModel):
    """Hold the size in bytes and the sha256 of a file when it was saved."""

    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Lock(StrictModel):
    """Record where a backbone came from, and the sha256 of each of its files."""

    source: Annotated[str, Field(max_length=100)]
    id: Annotated[str, Field(max_length=1000)]
    commit: Commit | None = None
    files: dict[str, Sha256]


class Manifest(StrictModel):
    """Hold the contents of mmzoo.json."""

    format: int
    mmzoo: str
    recipe: dict[str, Any]
    plugins: dict[Distribution, Version]
    lock: dict[PartKey, Lock]
    full: bool
    files: dict[str, FileFacts]
    digest: str

    @field_validator("recipe")
    @classmethod
    def _few_parts(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        for group in GROUPS.values():
            if isinstance(parts := recipe.get(group), dict) and len(parts) > MAX_PARTS:
                raise ValueError(f"{group} has {len(parts)} parts, and {MAX_PARTS} are allowed")
        return recipe


@dataclass
class CheckpointContents:
    """Hold what a verified checkpoint folder contains, except its weights, which `read_weights` loads."""

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

    Args:
        folder: made if it does not exist; an older checkpoint in it is replaced, and is still whole if anything fails.
        recipe, weights, lock, run, full: as `Manifest` and `CheckpointContents` hold them.
        plugins: distributions that the model needs, with their versions.
        card: the text of README.md.
        save_tokenizer: writes the tokenizer's files into the folder that it is called with.
    """
    folder = Path(folder)
    try:
        _remove_leftovers(folder)
        with staged_folder(folder / MANIFEST) as staged:
            save_file({name: value.contiguous() for name, value in weights.items()}, staged / WEIGHTS, {"format": "pt"})
            (staged / WEIGHTS).chmod(0o666 & ~umask())  # safetensors gives permissions to the owner only
            if save_tokenizer is not None:
                save_tokenizer(staged)
            if unknown := [name for name in _names(staged) if not screening.known(name)]:
                raise CheckpointError(f"{folder}: the tokenizer wrote {unknown[0]}, which a checkpoint cannot hold")
            (staged / RUN).write_text(_json_text(run), encoding="utf-8")
            config = {"model_type": "mmzoo", "architectures": ["MultimodalModel"]}
            (staged / CONFIG).write_text(_json_text(config), encoding="utf-8")
            (staged / CARD).write_text(card, encoding="utf-8")
            manifest = {
                "format": FORMAT,
                "mmzoo": importlib.metadata.version("mmzoo"),
                "recipe": dict(recipe),
                "plugins": dict(plugins),
                "lock": dict(lock),
                "full": full,
                "files": {name: file_facts(staged / name).model_dump() for name in _names(staged) if name not in UNHASHED},
            }
            (staged / MANIFEST).write_text(_json_text(_signed(manifest)), encoding="utf-8")
            move_files(staged, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        unchanged = " The checkpoint that was there is unchanged." if is_checkpoint(folder) else ""
        fix = "Free some space or choose another folder"
        raise CheckpointError(f"{folder}: cannot be written: {reason}.{unchanged} {fix}") from None
    return folder


def is_checkpoint(folder: str | Path) -> bool:
    """Return whether a folder has a manifest; nothing is verified."""
    return (Path(folder) / MANIFEST).is_file()


def read_checkpoint(folder: str | Path) -> CheckpointContents:
    """Read and verify a checkpoint folder: its format, the size and hash of each file, and that its plugins are installed.

    Raises:
        CheckpointError: a file is not valid. MissingPlugin: a plugin that it needs is not installed.
    """
    folder = Path(folder).expanduser()
    manifest = verify_checkpoint(folder)
    check_plugins(manifest.plugins)
    lock: dict[str, dict[str, Any]] = {kind: entry.model_dump() for kind, entry in manifest.lock.items()}
    run = screening.read_json(folder / RUN, MAX_JSON, numbers=True)
    return CheckpointContents(folder, manifest.recipe, manifest.plugins, lock, run, manifest.full)


def verify_checkpoint(folder: Path) -> Manifest:
    """Check a checkpoint folder as `read_checkpoint` does, without asking for its plugins, and return its manifest."""
    manifest = read_manifest(folder)
    for name, facts in manifest.files.items():
        check_file(folder, name, facts)
    for name in (CONFIG, TOKENIZER_CONFIG):
        screening.check_config(folder / name)
    screening.card_metadata(folder / CARD)
    stored_tensors(folder)
    validate(RunRecord, screening.read_json(folder / RUN, MAX_JSON, numbers=True), folder / RUN)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder, checked by its digest and schema. The files that it lists are not read."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder")
    screening.check_folder(folder)
    if not is_checkpoint(folder):
        if (folder / CHECKPOINTS).is_dir():
            fix = "run the same mmzoo train command with --resume to continue it"
            raise CheckpointError(f"{folder}: its training is not finished; {fix}")
        if (folder / SEEDS).is_file():
            raise CheckpointError(f"{folder}: holds the models of several seeds; name one of them, such as {folder / 'seed-0'}")
        raise CheckpointError(f"{folder}: no {MANIFEST}; this is not a checkpoint folder, or it is incomplete")
    manifest = screening.read_json(folder / MANIFEST, MAX_JSON)
    version = manifest.get("format")
    check_format(version, FORMAT, folder / MANIFEST)
    if manifest.get("digest") != manifest_digest(manifest):
        raise CheckpointError(f"{folder / MANIFEST}: was altered after it was saved (its digest does not match)")
    valid = validate(Manifest, manifest, folder / MANIFEST)
    if unlisted := {WEIGHTS, RUN} - set(valid.files):
        raise CheckpointError(f"{folder / MANIFEST}: does not list {sorted(unlisted)[0]}")
    screening.check_names(valid.files, str(folder / MANIFEST))
    if unknown := [name for name in valid.files if name in UNHASHED or not screening.known(name)]:
        raise CheckpointError(f"{folder / MANIFEST}: lists {unknown[0]!r}, which is no file of a checkpoint")
    return valid


def stored_tensors(folder: str | Path) -> dict[str, StoredTensor]:
    """Return the type and shape of each tensor of a checkpoint. Only the header of its weights is read."""
    return read_header(Path(folder) / WEIGHTS)


def read_weights(folder: str | Path, parameters: Container[str] = ()) -> dict[str, Tensor]:
    """Load the tensors of a verified checkpoint. None may hold NaN.

    Those named in ``parameters`` must be finite; a buffer, such as a mask, may hold infinity.
    """
    path = Path(folder) / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    for name, value in tensors.items():
        if value.is_floating_point() and (~value.isfinite() if name in parameters else value.isnan()).any():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity, so the model cannot compute an output")
    return tensors


def update_run(folder: str | Path, run: Mapping[str, Any], card: str) -> None:
    """Replace the run record and the card of a checkpoint; everything else stays as it is."""
    folder = Path(folder)
    manifest = screening.read_json(folder / MANIFEST, MAX_JSON)
    try:
        # All three are written before one is replaced: on a full disk the checkpoint stays as it was.
        with staged_file(folder / CARD) as prose, staged_file(folder / MANIFEST) as listing, staged_file(folder / RUN) as record:
            record.write_text(_json_text(run), encoding="utf-8")
            manifest["files"][RUN] = file_facts(record).model_dump()
            listing.write_text(_json_text(_signed(manifest)), encoding="utf-8")
            prose.write_text(card, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{folder}: the run could not be recorded: {error.strerror or error}") from None


def check_plugins(plugins: Mapping[str, str]) -> None:
    """Raise a `MissingPlugin` with the pip command if a plugin of a checkpoint is not installed, in whatever version."""
    for name, version in plugins.items():
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            fix = f"pip install '{name}=={version}'"
            raise MissingPlugin(f"this checkpoint needs the plugin '{name}', which is not installed: {fix}") from None


def check_format(version: object, known: int, path: Path) -> None:
    """Raise a `CheckpointError` unless the file ``path`` has the format that this mmzoo knows."""
    if isinstance(version, int) and version > known:
        raise CheckpointError(f"{path}: format {version} is newer than this mmzoo reads ({known}); pip install --upgrade mmzoo")
    if isinstance(version, int) and 0 < version < known:
        fix = "load it with the mmzoo that saved it, or train its recipe again"
        raise CheckpointError(f"{path}: format {version:d} is older than this mmzoo reads ({known}); {fix}")
    if version != known:
        raise CheckpointError(f"{path}: format {str(version)[:80]!r} is unknown")


def check_file(folder: Path, name: str, facts: FileFacts) -> None:
    """Raise a `CheckpointError` unless a file has the size and sha256 that the manifest lists."""
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; the checkpoint is incomplete")
    length = path.stat().st_size
    if length != facts.size:
        word = "truncated" if length < facts.size else "altered"
        raise CheckpointError(f"{path}: is {word} ({length} bytes, {facts.size} were saved)")
    if hash_file(path) != facts.sha256:
        raise CheckpointError(f"{path}: was altered after it was saved (its sha256 does not match)")


def file_facts(path: Path) -> FileFacts:
    """Return the size and sha256 of a file."""
    return FileFacts(size=path.stat().st_size, sha256=hash_file(path))


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the sha256, in hex, of the data of a manifest without its own ``digest``."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def validate(schema: type[Schema], data: Any, path: Path) -> Schema:
    """Return ``data`` as an object of ``schema``; a `CheckpointError` with the file ``path`` and the key if it does not fit."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(step)[:100] for step in problem["loc"])
        raise CheckpointError(f"{path}: {key}: {problem['msg']}") from None


def _signed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {**manifest, "digest": manifest_digest(manifest)}


def _remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it wrote left in a folder."""
    for path in folder.glob(f"{STAGING}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def move_files(staged: Path, folder: Path) -> list[str]:
    """Move the files of ``staged`` into ``folder``, the manifest last, and return their names.

    If this is interrupted, the older manifest does not match the new files, so loading fails.
    """
    names = sorted(_names(staged), key=lambda name: (name == MANIFEST, name))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).replace(folder / name)
    return names


def _names(folder: Path) -> list[str]:
    """Return the files of a folder and of its folders, relative to it."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _json_text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
