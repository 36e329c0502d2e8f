"""Publish a model: push it to a Hub or a folder, or pack it into one file."""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmzoo.backbones import local_backbones
from mmzoo.backbones.local_backbones import LocalBackbone
from mmzoo.checkpoints import card, screening
from mmzoo.checkpoints.folder import FileFacts, Manifest, read_manifest, verify_checkpoint
from mmzoo.checkpoints.screening import BACKBONES, CARD, MANIFEST, PACK, WHEELS
from mmzoo.common.files import hash_unchanged, staged_file
from mmzoo.errors import BadRecipe, CheckpointError, DoesNotFit, HubError
from mmzoo.models.bases import local_bases
from mmzoo.models.load import load
from mmzoo.models.model import MultimodalModel
from mmzoo.recipes.schema import Recipe
from mmzoo.sharing.archive import write_archive
from mmzoo.sharing.locations import check_revision, is_repository, local_folder, open_remote
from mmzoo.sharing.repository import Pushed, files_of
from mmzoo.sharing.unpack import FORMAT, SUFFIX, Index, PackedBackbone, is_pack, matching_wheels, unpacked


def push(
    model: MultimodalModel | str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    full: bool = False,
    tag: str | None = None,
    bases: Mapping[str, str | Path] | None = None,
) -> Pushed:
    """Share a model in one commit, which holds all of it. Files that the repository has already are not sent again.

    Credentials are taken from where `huggingface_hub` (``hf auth login``, ``HF_TOKEN``) or the store's package finds them.

    Args:
        model: a model, a checkpoint folder, which is verified first, or a pack.
        repo: ``"me/name"``, ``"file:///a/folder/me/name"`` or ``"s3://bucket/me/name"``; it is made if it does not exist.
        private: make it readable to you alone; refused for a repository that is public, and for object stores.
        revision: the branch, made if it does not exist; None for ``main``.
        create_pr: propose the commit as a pull request.
        full: share all weights, not only the trained ones.
        tag: a name for the commit.
        bases: what a checkpoint is to be built on in place of a folder or repository, as in `mmzoo.load`.

    Raises:
        DoesNotFit: the model is built on a folder of this machine, so that nobody else could load it.
        CheckpointError: the folder is no complete checkpoint, or the disk is full. HubError: the place refuses, fails or cannot
            be reached, someone else pushed meanwhile (on a Hub), or the card is refused; the branch is then unchanged.
    """
    remote, branch = open_remote(repo, revision)
    if tag is not None:
        check_revision(tag)
    if isinstance(model, str) and is_repository(model):
        raise HubError("the model to push is itself a repository; pull it first: mmzoo pull REPOSITORY --to DIR")
    with tempfile.TemporaryDirectory(prefix="mmzoo-push-") as name:
        temporary = Path(name)
        folder = _checkpoint_folder(model, temporary, full=full, bases=bases)
        files = files_of(folder)
        if CARD in files:
            text = card.addressed(files[CARD].read_text(encoding="utf-8"), remote.name)
            files[CARD] = temporary / CARD
            try:
                files[CARD].write_text(text, encoding="utf-8")
            except OSError as error:
                raise CheckpointError(f"{temporary}: cannot be written: {error.strerror or error}; free some space") from None
        recipe = read_manifest(folder).recipe
        message = f"Push {str(recipe.get('name') or 'a model')[:100]} with mmzoo"
        return remote.send(files, private=private, revision=branch, create_pr=create_pr, tag=tag, message=message)


def _checkpoint_folder(
    model: MultimodalModel | str | Path, temporary: Path, *, full: bool, bases: Mapping[str, str | Path] | None
) -> Path:
    """Return a checkpoint folder of what is to be pushed, written to ``temporary`` if it has to be another one."""
    if isinstance(model, MultimodalModel):
        if bases:
            raise BadRecipe("bases: are for a checkpoint folder; load it with them, mmzoo.load(folder, bases=...), and push that")
        if not full and not model.provenance.full:
            _refuse_local_bases(model.recipe, model.lock(), full=False, old={})
        folder = model.save(temporary, full=full)
    else:
        folder = unpacked(model) if is_pack(model) else Path(model).expanduser()
        manifest = verify_checkpoint(folder)
        recipe = Recipe.of(manifest.recipe, str(folder))
        if bases or (full and not manifest.full) or (full and local_bases(recipe, _locks(manifest))):
            folder = load(folder, bases=bases).save(temporary, full=full)
    manifest = read_manifest(folder)
    old = {str(new): name for name, new in (bases or {}).items()}
    _refuse_local_bases(Recipe.of(manifest.recipe, str(folder)), _locks(manifest), full=full, old=old)
    return folder


def _locks(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {key: lock.model_dump() for key, lock in manifest.lock.items()}


def _refuse_local_bases(recipe: Recipe, lock: Mapping[str, Mapping[str, Any]], *, full: bool, old: Mapping[str, str]) -> None:
    """Raise `DoesNotFit` if a part is built on a folder, which nobody has who loads what is pushed.

    ``old`` has the recorded name of each folder that replaces another.
    """
    if not (parts := local_bases(recipe, lock)):
        return
    even = ", also with --full, since its class has no options for the folder's configuration" if full else ""
    built = [
        f"the {recipe.label(key).replace('_', ' ')} is built on the folder '{name}' of this machine"
        for key, names in parts.items()
        for name in names
    ]
    folders = list(dict.fromkeys(old.get(name, name) for names in parts.values() for name in names))
    options = " ".join(f"--base {name}=owner/name" for name in folders)
    ways = [
        "share every weight, with the configuration and tokenizer: --full (full=True)",
        "write one file that holds the folder's files too: mmzoo pack MODEL out.mmzoo",
        f"share it on a hub, and name it there: {options} (bases={dict.fromkeys(folders, 'owner/name')})",
    ]
    raise DoesNotFit(
        f"{', '.join(built)}, so nobody else could load what is pushed{even}; nothing was sent. Choose one:\n  "
        + "\n  ".join(ways[full:])
    )


def pack(model: MultimodalModel | str | Path, path: str | Path, *, wheels: str | Path | None = None) -> Path:
    """Write a model and everything that loading it needs into one file. `mmzoo.load` then needs neither network nor cache.

    The model is loaded once, and the files of its backbones that this fetches, at the locked commits and hashes, are packed too.

    Args:
        model: a model, or anything that `mmzoo.load` accepts.
        path: ``"name.mmzoo"``. An older pack there is replaced at the end, and is unchanged if anything fails.
        wheels: a folder of wheels. Those of the plugins and of the packages with weights that the checkpoint needs are added.

    Returns:
        The path.

    Raises:
        CheckpointError: the checkpoint is not valid, a wheel is missing, a plugin's files cannot be packed, or the disk is full.
        SourceError: a backbone cannot be fetched. HubError: the repository cannot be fetched.
    """
    path = Path(path).expanduser()
    if path.suffix != SUFFIX or path.is_dir():
        raise CheckpointError(f"{path}: a pack is a file whose name ends in {SUFFIX}")
    try:
        with tempfile.TemporaryDirectory(prefix="mmzoo-pack-") as temporary:
            folder = model.save(temporary) if isinstance(model, MultimodalModel) else local_folder(model)
            manifest = verify_checkpoint(folder)
            wheel_files = {} if wheels is None else _collect_wheels(manifest, Path(wheels).expanduser())
            backbones = _fetch_backbones(folder)
            members = {name: folder / name for name in [MANIFEST, CARD, *sorted(manifest.files)] if (folder / name).is_file()}
            for i, backbone in enumerate(backbones):
                members |= {f"{BACKBONES}/{i}/{name}": file for name, file in sorted(backbone.files.items())}
            if unknown := [name for name in members if not screening.known_in_pack(name)]:
                raise CheckpointError(f"{path}: a pack cannot contain the backbone's file {unknown[0].rpartition('/')[2]}")
            _write_pack(path, {**members, **wheel_files}, backbones)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}; what was there is unchanged") from None
    return path


def _fetch_backbones(folder: Path) -> list[LocalBackbone]:
    """Load a checkpoint, and return the files of its backbones that this fetched; a part must record all that it fetches."""
    with local_backbones.record_fetches() as records:
        model = load(folder)
    backbones = [backbone for backbone in records.values() if backbone.files]
    fetched = {backbone.id for backbone in backbones}
    for key, entry in model.provenance.entries.items():
        facts = model.part(key).lock()
        if facts and facts.get("source") != "package" and facts.get("id") not in fetched:
            raise CheckpointError(
                f"{entry.label} of plugin '{entry.plugin}' does not say which files it fetches, so they cannot be packed. "
                "Pack a checkpoint that model.save(folder, full=True) wrote, or ask the plugin's author to fetch files with "
                "mmzoo.api.Source or mmzoo.api.fetch_weights"
            )
    return backbones


def _write_pack(path: Path, members: Mapping[str, Path], backbones: Sequence[LocalBackbone]) -> None:
    facts = {name: FileFacts(size=file.stat().st_size, sha256=hash_unchanged(file)) for name, file in members.items()}
    listed = [PackedBackbone(id=b.id, revision=b.revision, commit=b.commit, files=sorted(b.files)) for b in backbones]
    index = Index(format=FORMAT, mmzoo=importlib.metadata.version("mmzoo"), files=facts, backbones=listed)
    with staged_file(path) as staged:
        write_archive(staged, {PACK: json.dumps(index.model_dump(), indent=2).encode(), **members})


def _collect_wheels(manifest: Manifest, folder: Path) -> dict[str, Path]:
    """Return the wheels of the plugins that a checkpoint needs, and of packages that contain its weights, by name in the pack."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder of wheels")
    needed = {**manifest.plugins, **{b.id: b.commit for b in manifest.lock.values() if b.source == "package" and b.commit}}
    names = sorted(file.name for file in folder.glob("*.whl"))
    wheels: dict[str, Path] = {}
    for distribution, version in needed.items():
        files = [folder / name for name in matching_wheels(names, distribution, version)]
        if not files and distribution != "mmzoo":  # who loads the pack has mmzoo
            raise CheckpointError(
                f"{folder}: has no wheel of {distribution} {version}. Add it with one of\n"
                f"  pip download --no-deps '{distribution}=={version}' -d {folder}\n"
                f"  pip wheel --no-deps PATH_OF_ITS_SOURCE -w {folder}"
            )
        if damaged := [file for file in files if not zipfile.is_zipfile(file)]:
            raise CheckpointError(f"{damaged[0]}: is truncated or no wheel; fetch it again")
        wheels |= {f"{WHEELS}/{file.name}": file for file in files}
    return wheels
