"""Publish a model: push it to a Hub or a folder, or pack it into one file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from mmzoo.backbones import local_backbones
from mmzoo.checkpoints import card, screening
from mmzoo.checkpoints.folder import STAGING, FileFacts, Manifest, read_manifest, umask, verify_checkpoint
from mmzoo.checkpoints.screening import BACKBONES, CARD, MANIFEST, PACK, WHEELS
from mmzoo.common.files import hash_unchanged
from mmzoo.errors import CheckpointError, HubError
from mmzoo.interfaces.kinds import PARTS
from mmzoo.models.load import load
from mmzoo.models.model import MultimodalModel
from mmzoo.sharing.archive import write
from mmzoo.sharing.locations import is_repository, local_folder, open_remote
from mmzoo.sharing.repository import Pushed, files_of
from mmzoo.sharing.unpack import FORMAT, SUFFIX, Index, PackedBackbone, is_pack, unpacked, wheels_of


def push(
    model: MultimodalModel | str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    full: bool = False,
    tag: str | None = None,
) -> Pushed:
    """Share a model: one commit that holds it whole, or nothing. Files that are there already are not sent again.

    A token is taken from where `huggingface_hub` finds it (``hf auth login``, ``HF_TOKEN``), and from nowhere else.

    Args:
        model: a model, a checkpoint folder, which is verified first, or a pack.
        repo: ``"me/name"``, made if it is not there; or ``"file:///a/folder/me/name"``.
        private: make it readable to you alone; refused for a repository that is public.
        revision: the branch, made if it is not there; None for ``main``.
        create_pr: propose the commit as a pull request.
        full: share every weight, not those alone that were trained.
        tag: name the commit so.

    Raises:
        CheckpointError: the folder is no whole checkpoint, or the disk is full. HubError: the hub refuses, fails or cannot be
            reached, someone else pushed meanwhile, or the card is not taken; the branch is then at the commit that it was at.
    """
    remote, branch = open_remote(repo, revision)
    if tag is not None:
        open_remote(repo.partition("@")[0], tag)  # is it a name?
    if isinstance(model, str) and is_repository(model):
        raise HubError(f"{model}: is no folder; pull it first: mmzoo pull {model} --to DIR")
    made = Path(tempfile.mkdtemp(prefix="mmzoo-push-"))
    try:
        folder = _checkpoint_folder(model, made, full=full)
        files = files_of(folder)
        if CARD in files:
            text = files[CARD].read_text(encoding="utf-8")
            files[CARD] = made / CARD
            try:
                files[CARD].write_text(card.addressed(text, remote.name), encoding="utf-8")
            except OSError as error:
                raise CheckpointError(f"{made}: cannot be written: {error.strerror or error}; free some space") from None
        recipe = read_manifest(folder).recipe
        message = f"Push {str(recipe.get('name') or 'a model')[:100]} with mmzoo"
        return remote.send(files, private=private, revision=branch, create_pr=create_pr, tag=tag, message=message)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _checkpoint_folder(model: MultimodalModel | str | Path, made: Path, *, full: bool) -> Path:
    if isinstance(model, MultimodalModel):
        return model.save(made, full=full)
    folder = unpacked(model) if is_pack(model) else Path(model).expanduser()
    if full and not verify_checkpoint(folder).full:
        return load(folder).save(made, full=True)
    verify_checkpoint(folder)
    return folder


def pack(model: MultimodalModel | str | Path, path: str | Path, *, wheels: str | Path | None = None) -> Path:
    """Write one file that holds a model and everything that it is loaded with: `mmzoo.load` needs no network and no cache for it.

    The model is loaded once, and what that fetches of backbones, at the locked commits and hashes, is packed beside it.

    Args:
        model: a model, or what `mmzoo.load` takes.
        path: ``"name.mmzoo"``; an older pack there is replaced at the end, and stays as it is if anything fails.
        wheels: a folder of wheels, of which those of the plugins (and packages with weights) that the checkpoint needs are added.

    Returns:
        The path.

    Raises:
        CheckpointError: the model is no whole checkpoint, a wheel is missing, a plugin's files cannot be packed, or the disk is
            full. SourceError: a backbone cannot be fetched. HubError: the repository cannot be.
    """
    path = Path(path).expanduser()
    if path.suffix != SUFFIX or path.is_dir():
        raise CheckpointError(f"{path}: a pack is a file whose name ends in {SUFFIX}")
    made = Path(tempfile.mkdtemp(prefix="mmzoo-pack-"))
    try:
        folder = model.save(made) if isinstance(model, MultimodalModel) else local_folder(model)
        manifest = verify_checkpoint(folder)
        chosen = {} if wheels is None else _collect_wheels(manifest, Path(wheels).expanduser())
        with local_backbones.record_fetches() as fetched:
            loaded = load(folder)
        found = [backbone for backbone in fetched.values() if backbone.files]
        _check_whole(loaded, found)
        members: dict[str, Path] = {name: folder / name for name in [MANIFEST, CARD, *sorted(manifest.files)]}
        for i, backbone in enumerate(found):
            members |= {f"{BACKBONES}/{i}/{name}": file for name, file in sorted(backbone.files.items())}
        members = {name: file for name, file in members.items() if name != CARD or file.is_file()}
        if strange := [name for name in members if not screening.packed(name)]:
            raise CheckpointError(f"{path}: {strange[0].rpartition('/')[2]} of a backbone is of a kind that a pack cannot hold")
        _write_pack(path, {**members, **chosen}, found)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}; what was there is unchanged") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return path


def _write_pack(path: Path, members: dict[str, Path], backbones: list[local_backbones.LocalBackbone]) -> None:
    facts = {name: FileFacts(size=file.stat().st_size, sha256=hash_unchanged(file)) for name, file in members.items()}
    listed = [PackedBackbone(id=b.id, revision=b.revision, commit=b.commit, files=sorted(b.files)) for b in backbones]
    index = Index(format=FORMAT, mmzoo=importlib.metadata.version("mmzoo"), files=facts, backbones=listed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=STAGING, delete=False) as file:
        staged = Path(file.name)
        try:
            write(file, {PACK: json.dumps(index.model_dump(), indent=2).encode(), **members})  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
            staged.chmod(0o666 & ~umask())
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)


def _check_whole(model: MultimodalModel, found: list[local_backbones.LocalBackbone]) -> None:
    """A part with weights whose files were not seen fetches them by means of its own, and would fail where there is no network.

    Raises:
        CheckpointError: naming it.
    """
    seen = {backbone.id for backbone in found}
    for kind in PARTS:
        facts = getattr(model, kind).lock()
        if facts and facts.get("source") != "package" and facts.get("id") not in seen:
            entry = model.provenance.entries[kind]
            raise CheckpointError(
                f"{entry.label} of plugin '{entry.plugin}' does not say which files it fetches, so they cannot be packed; "
                "pack what model.save(folder, full=True) wrote, or ask its author to fetch with mmzoo.backbones.repository or mmzoo.backbones.weights"
            )


def _collect_wheels(manifest: Manifest, folder: Path) -> dict[str, Path]:
    """The wheels of what a checkpoint needs: its plugins, and the packages that its weights are in."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder of wheels")
    wanted = {**manifest.plugins, **{b.id: b.commit for b in manifest.lock.values() if b.source == "package" and b.commit}}
    found: dict[str, Path] = {}
    for distribution, version in wanted.items():
        files = [folder / name for name in wheels_of(sorted(file.name for file in folder.glob("*.whl")), distribution, version)]
        if not files and distribution != "mmzoo":  # which whoever loads the pack has
            raise CheckpointError(
                f"{folder}: has no wheel of {distribution} {version}. Add it with one of\n"
                f"  pip download --no-deps '{distribution}=={version}' -d {folder}\n"
                f"  pip wheel --no-deps PATH_OF_ITS_SOURCE -w {folder}"
            )
        if broken := [file for file in files if not zipfile.is_zipfile(file)]:
            raise CheckpointError(f"{broken[0]}: is truncated or no wheel; fetch it again")
        found |= {f"{WHEELS}/{file.name}": file for file in files}
    return found
