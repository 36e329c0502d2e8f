"""Reading packs: one file that holds a checkpoint and everything that it is loaded with, for a machine without network or cache.

    pack.json                     each other file with its size and hash, and what each backbone is
    mmzoo.json, ...               the checkpoint, as it stands in a folder
    backbones/0/config.json, ...  what was fetched of each backbone
    wheels/....whl                of plugins, if they were asked for

A pack is unpacked before it is loaded, in a cache or where it is told to; such a folder is a checkpoint that finds its backbones
beside it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version
from pydantic import Field

from mmzoo.backbones.local_backbones import LocalBackbone
from mmzoo.checkpoints import screening
from mmzoo.checkpoints.folder import (
    STAGING,
    FileFacts,
    Manifest,
    Strict,
    check_plugins,
    is_checkpoint,
    read_manifest,
    validated,
    verify_checkpoint,
)
from mmzoo.checkpoints.header import read_header
from mmzoo.checkpoints.screening import BACKBONES, CARD, MANIFEST, PACK, WHEELS
from mmzoo.common import parsing
from mmzoo.common.files import cache_folder, hash_unchanged
from mmzoo.common.progress import bar
from mmzoo.errors import CheckpointError, MissingPlugin
from mmzoo.sharing.archive import Archive
from mmzoo.sharing.repository import staging

SUFFIX = ".mmzoo"
FORMAT = 1
MAX_INDEX = 4 << 20


class PackedBackbone(Strict):
    """What a backbone is: where it was asked for, and the names of the files that were fetched."""

    id: Annotated[str, Field(max_length=1000)]
    revision: Annotated[str, Field(max_length=1000)] | None = None
    commit: Annotated[str, Field(pattern=r"^[\w.+-]{1,100}$")] | None = None
    files: Annotated[list[str], Field(min_length=1)]


class Index(Strict):
    """The contents of pack.json."""

    format: int
    mmzoo: str
    files: dict[str, FileFacts]
    backbones: list[PackedBackbone]

    @property
    def wheels(self) -> list[str]:
        return sorted(name.partition("/")[2] for name in self.files if name.startswith(f"{WHEELS}/"))


def is_pack(model: object) -> bool:
    """Whether this names a pack, whether it is there or not."""
    return isinstance(model, str | Path) and (Path(model).suffix == SUFFIX or Path(model).is_file()) and not Path(model).is_dir()


def unpacked(path: str | Path) -> Path:
    """The verified folder of a pack, in a cache.

    Raises:
        CheckpointError: as `unpack`.
    """
    path = Path(path).expanduser()
    content = hashlib.sha256(read_index(path).model_dump_json().encode()).hexdigest()
    target = cache_folder() / "unpacked" / content[:32]
    if is_checkpoint(target):
        try:
            verify_checkpoint(target)
            backbones(target)
            return target
        except CheckpointError:  # damaged since: unpacked anew
            shutil.rmtree(target, ignore_errors=True)
    unpack(path, target)
    return target


def check_pack_plugins(path: str | Path, manifest: Manifest) -> None:
    """Whether the plugins that a pack needs are installed; loading a pack never installs one.

    Raises:
        MissingPlugin: naming its wheel in the pack, if there is one, and the commands.
    """
    for name, version in manifest.plugins.items():
        try:
            check_plugins({name: version})
        except MissingPlugin as error:
            wheels = wheels_of(read_index(Path(path).expanduser()).wheels, name, version)
            if not wheels:
                raise MissingPlugin(f"{path}: {error}; the pack has no wheel of it (mmzoo pack --wheels DIR adds them)") from None
            raise MissingPlugin(
                f"{path}: {error}\nIts wheel is in the pack; if you trust it:\n"
                f"  mmzoo load {path} --wheels wheels\n  pip install --find-links wheels wheels/{wheels[0]}"
            ) from None


def wheels_of(names: Iterable[str], distribution: str, version: str) -> list[str]:
    """Those of some file names that are wheels of a distribution in a version."""
    found = []
    for name in names:
        try:
            its_name, its_version, _, _ = parse_wheel_filename(name)
            if (its_name, its_version) == (canonicalize_name(distribution), Version(version)):
                found.append(name)
        except (InvalidWheelFilename, InvalidVersion):
            continue
    return found


def unpack(path: str | Path, to: str | Path) -> Path:
    """Write a pack as a checkpoint folder that needs no network. Its plugins need not be installed; its wheels stay in the pack.

    Raises:
        CheckpointError: it is no pack, was altered, or there is no room; ``to`` is then as it was. HubError: ``to`` holds
            something that is no checkpoint.
    """
    path, to = Path(path).expanduser(), Path(to).expanduser()
    with _opened(path) as archive:
        index = _index(archive)
        wanted = [name for name in archive.sizes if not name.startswith(f"{WHEELS}/")]
        with staging(to) as made, bar(f"unpacking {path.name}", len(wanted)) as shown:
            needed, free = sum(archive.sizes[name] for name in wanted), shutil.disk_usage(made).free
            if needed > free:
                raise CheckpointError(f"{path}: needs {needed >> 20} MiB to be unpacked; {to.parent} has {free >> 20} MiB left")
            try:
                archive.extract(PACK, made / PACK)
                archive.extract(MANIFEST, made / MANIFEST, index.files[MANIFEST].sha256)
                _check_manifest(path, index, read_manifest(made))
                for name in wanted:
                    if name not in (PACK, MANIFEST):
                        archive.extract(name, made / name, index.files[name].sha256)
                    shown.advance()
                verify_checkpoint(made)
                backbones(made)
            except CheckpointError as error:  # which names the file by where it is for now
                raise CheckpointError(str(error).replace(str(made), str(path))) from None
    return to


def extract_wheels(path: str | Path, to: str | Path) -> list[Path]:
    """Write the wheels of a pack into a folder; none is installed.

    Raises:
        CheckpointError: it has none, one was altered, or the folder cannot be written.
    """
    path, to = Path(path).expanduser(), Path(to).expanduser()
    with _opened(path) as archive:
        index = _index(archive)
        if not index.wheels:
            raise CheckpointError(f"{path}: has no wheels; `mmzoo pack MODEL {path.name} --wheels DIR` adds them")
        try:
            to.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=STAGING, dir=to) as made:
                for name in index.wheels:
                    archive.extract(f"{WHEELS}/{name}", Path(made) / name, index.files[f"{WHEELS}/{name}"].sha256)
                return [(Path(made) / name).replace(to / name) for name in index.wheels]
        except OSError as error:
            raise CheckpointError(f"{to}: cannot be written: {error.strerror or error}") from None


def read_index(path: Path) -> Index:
    """What a pack says that it holds; the archive is checked, and no file but pack.json is read.

    Raises:
        CheckpointError: it is no pack.
    """
    with _opened(path) as archive:
        return _index(archive)


def backbones(folder: Path) -> Sequence[LocalBackbone]:
    """What stands on the shelf of an unpacked pack, each file as its hash says; nothing if the folder is no such.

    Raises:
        CheckpointError: a file is missing or was altered.
    """
    if not (folder / PACK).is_file():
        return ()
    if (size := (folder / PACK).stat().st_size) > MAX_INDEX:
        raise CheckpointError(f"{folder / PACK}: is {size} bytes; {MAX_INDEX} are allowed")
    index = _validated((folder / PACK).read_bytes(), folder / PACK)
    found = []
    for i, facts in enumerate(index.backbones):
        made = LocalBackbone(facts.id, facts.revision, facts.commit)
        for name in facts.files:
            path = made.files[name] = folder / BACKBONES / str(i) / name
            expected = index.files[f"{BACKBONES}/{i}/{name}"]
            if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
                raise CheckpointError(f"{path}: is a link or missing; unpack the pack again")
            if path.stat().st_size != expected.size or hash_unchanged(path) != expected.sha256:
                raise CheckpointError(f"{path}: was altered after it was packed; unpack the pack again")
            if path.suffix == ".safetensors":
                read_header(path)
        found.append(made)
    return found


def _opened(path: Path) -> Archive:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such pack; `mmzoo pack MODEL {path.name}` writes one")
    return Archive(path)


def _index(archive: Archive) -> Index:
    """What an archive holds, after its own word, which must be true of names and sizes."""
    path = archive.path
    if PACK not in archive.sizes:
        raise CheckpointError(f"{path}: is no pack: it has no {PACK}")
    if (size := archive.sizes[PACK]) > MAX_INDEX:
        raise CheckpointError(f"{path}: {PACK} is {size} bytes; {MAX_INDEX} are allowed")
    index = _validated(archive.read(PACK), path / PACK)
    stored = {name: size for name, size in archive.sizes.items() if name != PACK}
    for name in stored.keys() | index.files.keys():
        if name not in stored or name not in index.files:
            raise CheckpointError(f"{path}: {name} is {'missing' if name in index.files else f'not listed in {PACK}'}")
        if stored[name] != index.files[name].size:
            raise CheckpointError(f"{path}: {name} is {stored[name]} bytes, {PACK} says {index.files[name].size}")
    return index


def _validated(text: bytes, where: Path) -> Index:
    try:
        data = parsing.parse(text.decode())
    except ValueError as error:
        raise CheckpointError(f"{where}: is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{where}: must hold a JSON object")
    version = data.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(f"{where}: format {version} is newer than this mmzoo reads ({FORMAT}); pip install --upgrade mmzoo")
    index = validated(Index, data, where)
    if index.format != FORMAT:
        raise CheckpointError(f"{where}: format {index.format} is unknown")
    listed = {name for name in index.files if name.startswith(f"{BACKBONES}/")}
    if strange := [name for name in index.files if name == PACK or not screening.packed(name)]:
        raise CheckpointError(f"{where}: lists {strange[0][:200]!r}, which is no file of a pack")
    if wrong := listed ^ {f"{BACKBONES}/{i}/{name}" for i, b in enumerate(index.backbones) for name in b.files}:
        raise CheckpointError(f"{where}: {sorted(wrong)[0][:200]!r} is of no backbone, or not listed")
    if MANIFEST not in index.files:
        raise CheckpointError(f"{where}: lists no {MANIFEST}")
    return index


def _check_manifest(path: Path, index: Index, manifest: Manifest) -> None:
    """The checkpoint's own list and the pack's must be one."""
    root = {name: facts for name, facts in index.files.items() if "/" not in name or screening.known(name)}
    for name in (root.keys() - {MANIFEST, CARD}) ^ manifest.files.keys():
        raise CheckpointError(f"{path}: {name} is not in both {PACK} and {MANIFEST}")
    for name, facts in manifest.files.items():
        if root[name] != facts:
            raise CheckpointError(f"{path}: {name} is not what {MANIFEST} says")
