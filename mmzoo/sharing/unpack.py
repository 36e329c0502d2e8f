"""Read packs: files that contain a checkpoint and everything that loading it needs, for machines without network or cache.

    pack.json                     size and hash of each other file; id, revision and files of each backbone
    mmzoo.json, ...               the checkpoint, as in a folder
    backbones/0/config.json, ...  the files that were fetched for each backbone
    wheels/....whl                of plugins, if they were requested

A pack is unpacked before it is loaded, in a cache or in a folder of the user's. The result is a checkpoint folder that contains
its backbones.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version
from pydantic import Field

from mmzoo.backbones.local_backbones import LocalBackbone
from mmzoo.checkpoints import screening
from mmzoo.checkpoints.folder import (
    Commit,
    FileFacts,
    Manifest,
    StrictModel,
    check_format,
    check_plugins,
    is_checkpoint,
    read_manifest,
    validate,
    verify_checkpoint,
)
from mmzoo.checkpoints.header import read_header
from mmzoo.checkpoints.screening import BACKBONES, CARD, MANIFEST, PACK, WHEELS
from mmzoo.common.files import cache_folder, hash_unchanged, staged_folder
from mmzoo.common.progress import bar
from mmzoo.common.sanitize import short_repr
from mmzoo.errors import CheckpointError, MissingPlugin
from mmzoo.sharing.archive import Archive, open_archive
from mmzoo.sharing.repository import staging

SUFFIX = ".mmzoo"
FORMAT = 1
MAX_INDEX = 4 << 20  # bytes


class PackedBackbone(StrictModel):
    """Describe a backbone: the id and revision that were requested, the commit, and the names of the files that were fetched."""

    id: Annotated[str, Field(max_length=1000)]
    revision: Annotated[str, Field(max_length=1000)] | None = None
    commit: Commit | None = None
    files: Annotated[list[str], Field(min_length=1)]


class Index(StrictModel):
    """Hold the contents of pack.json."""

    format: int
    mmzoo: str
    files: dict[str, FileFacts]
    backbones: list[PackedBackbone]

    @property
    def wheels(self) -> list[str]:
        """Return the file names of the wheels, sorted."""
        return sorted(name.partition("/")[2] for name in self.files if name.startswith(f"{WHEELS}/"))


def is_pack(model: object) -> bool:
    """Return whether ``model`` is the path of a pack. The file need not exist."""
    return isinstance(model, str | Path) and (Path(model).suffix == SUFFIX or Path(model).is_file()) and not Path(model).is_dir()


def unpacked(path: str | Path) -> Path:
    """Unpack a pack in a cache, as `unpack`, and return the verified folder."""
    path = Path(path).expanduser()
    content = hashlib.sha256(read_index(path).model_dump_json().encode()).hexdigest()
    target = cache_folder() / "unpacked" / content[:32]
    if is_checkpoint(target):
        try:
            verify_checkpoint(target)
            backbones(target)
            return target
        except CheckpointError:  # it was damaged later: unpack again
            shutil.rmtree(target, ignore_errors=True)
    unpack(path, target)
    return target


def check_pack_plugins(path: str | Path, manifest: Manifest) -> None:
    """Raise a `MissingPlugin` with the pip commands if a plugin that a pack needs is missing. Loading never installs one."""
    for name, version in manifest.plugins.items():
        try:
            check_plugins({name: version})
        except MissingPlugin as error:
            wheels = matching_wheels(read_index(Path(path).expanduser()).wheels, name, version)
            if not wheels:
                raise MissingPlugin(f"{path}: {error}; the pack has no wheel of it (mmzoo pack --wheels DIR adds it)") from None
            raise MissingPlugin(
                f"{path}: {error}\nIts wheel is in the pack; if you trust it:\n"
                f"  mmzoo load {path} --wheels wheels\n  pip install --find-links wheels wheels/{wheels[0]}"
            ) from None


def matching_wheels(names: Iterable[str], distribution: str, version: str) -> list[str]:
    """Return those of some file names that are wheels of a distribution in a version."""
    matching = []
    for name in names:
        with suppress(InvalidWheelFilename, InvalidVersion):
            if parse_wheel_filename(name)[:2] == (canonicalize_name(distribution), Version(version)):
                matching.append(name)
    return matching


def unpack(path: str | Path, to: str | Path) -> Path:
    """Write a pack as a checkpoint folder that needs no network. Its plugins need not be installed; its wheels are not written.

    On any error ``to`` is unchanged.
    """
    path, to = Path(path).expanduser(), Path(to).expanduser()
    with open_archive(path) as archive:
        index = _index(archive)
        names = [name for name in archive.sizes if not name.startswith(f"{WHEELS}/")]
        with staging(to) as staged, bar(f"unpacking {path.name}", len(names)) as progress:
            needed, free = sum(archive.sizes[name] for name in names), shutil.disk_usage(staged).free
            if needed > free:
                raise CheckpointError(f"{path}: needs {needed >> 20} MiB to be unpacked; {to.parent} has {free >> 20} MiB free")
            try:
                archive.extract(PACK, staged / PACK)
                archive.extract(MANIFEST, staged / MANIFEST, index.files[MANIFEST].sha256)
                _check_manifest(path, index, read_manifest(staged))
                for name in names:
                    if name not in (PACK, MANIFEST):
                        archive.extract(name, staged / name, index.files[name].sha256)
                    progress.advance()
                verify_checkpoint(staged)
                backbones(staged)
            except CheckpointError as error:  # name the pack instead of the staging folder
                raise CheckpointError(str(error).replace(str(staged), str(path))) from None
    return to


def extract_wheels(path: str | Path, to: str | Path) -> list[Path]:
    """Write the wheels of a pack into a folder, and return their paths; none is installed."""
    path, to = Path(path).expanduser(), Path(to).expanduser()
    with open_archive(path) as archive:
        index = _index(archive)
        if not index.wheels:
            raise CheckpointError(f"{path}: has no wheels; `mmzoo pack MODEL {path.name} --wheels DIR` adds them")
        try:
            with staged_folder(to / WHEELS) as staged:
                for name in index.wheels:
                    archive.extract(f"{WHEELS}/{name}", staged / name, index.files[f"{WHEELS}/{name}"].sha256)
                return [(staged / name).replace(to / name) for name in index.wheels]
        except OSError as error:
            raise CheckpointError(f"{to}: cannot be written: {error.strerror or error}") from None


def read_index(path: Path) -> Index:
    """Return the list of files of a pack. The archive is checked; no file but pack.json is read."""
    with open_archive(path) as archive:
        return _index(archive)


def backbones(folder: Path) -> Sequence[LocalBackbone]:
    """Return the backbones of an unpacked pack, after their files were verified. Empty if the folder is no unpacked pack."""
    if not (folder / PACK).is_file():
        return ()
    index = _checked_index(screening.read_json(folder / PACK, MAX_INDEX), folder / PACK)
    verified = []
    for i, packed in enumerate(index.backbones):
        backbone = LocalBackbone(packed.id, packed.revision, packed.commit)
        for name in packed.files:
            path = backbone.files[name] = folder / BACKBONES / str(i) / name
            expected = index.files[f"{BACKBONES}/{i}/{name}"]
            if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
                raise CheckpointError(f"{path}: is a link or missing; unpack the pack again")
            if path.stat().st_size != expected.size or hash_unchanged(path) != expected.sha256:
                raise CheckpointError(f"{path}: was altered after it was packed; unpack the pack again")
            if path.suffix == ".safetensors":
                read_header(path)
        verified.append(backbone)
    return verified


def _index(archive: Archive) -> Index:
    """Return the list in pack.json, whose names and sizes must be those of the archive."""
    path = archive.path
    if PACK not in archive.sizes:
        raise CheckpointError(f"{path}: is no pack: it has no {PACK}")
    if (size := archive.sizes[PACK]) > MAX_INDEX:
        raise CheckpointError(f"{path}: {PACK} is {size} bytes; {MAX_INDEX} are allowed")
    index = _checked_index(screening.parse_json(archive.read(PACK), path / PACK), path / PACK)
    stored = {name: size for name, size in archive.sizes.items() if name != PACK}
    for name in stored.keys() | index.files.keys():
        if name not in stored or name not in index.files:
            raise CheckpointError(f"{path}: {name} is {'missing' if name in index.files else f'not listed in {PACK}'}")
        if stored[name] != index.files[name].size:
            raise CheckpointError(f"{path}: {name} is {stored[name]} bytes, {PACK} says {index.files[name].size}")
    return index


def _checked_index(data: dict[str, Any], where: Path) -> Index:
    """Return the contents of pack.json. Each backbone's files must be listed, and nothing that no pack contains."""
    check_format(data.get("format"), FORMAT, where)
    index = validate(Index, data, where)
    if unknown := [name for name in index.files if name == PACK or not screening.known_in_pack(name)]:
        raise CheckpointError(f"{where}: lists {short_repr(unknown[0])}, which is no file of a pack")
    listed = {name for name in index.files if name.startswith(f"{BACKBONES}/")}
    if wrong := listed ^ {f"{BACKBONES}/{i}/{name}" for i, b in enumerate(index.backbones) for name in b.files}:
        raise CheckpointError(f"{where}: {short_repr(min(wrong))} belongs to no backbone, or is not listed")
    if MANIFEST not in index.files:
        raise CheckpointError(f"{where}: lists no {MANIFEST}")
    return index


def _check_manifest(path: Path, index: Index, manifest: Manifest) -> None:
    """Check that pack.json and the checkpoint's manifest list the same files of the checkpoint."""
    checkpoint = {name: facts for name, facts in index.files.items() if "/" not in name or screening.known(name)}
    for name in (checkpoint.keys() - {MANIFEST, CARD}) ^ manifest.files.keys():
        raise CheckpointError(f"{path}: {name} is not in both {PACK} and {MANIFEST}")
    for name, facts in manifest.files.items():
        if checkpoint[name] != facts:
            raise CheckpointError(f"{path}: {name} is not what {MANIFEST} says")
