"""Sharing a model, and finding shared ones."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from mmzoo.checkpoints import card
from mmzoo.checkpoints.folder import read_manifest, verify_checkpoint
from mmzoo.checkpoints.screening import CARD
from mmzoo.errors import CheckpointError, HubError
from mmzoo.models.load import load
from mmzoo.models.model import MultimodalModel
from mmzoo.sharing.locations import is_repository, open_remote
from mmzoo.sharing.repository import Pushed, files_of
from mmzoo.sharing.unpack import is_pack, unpacked


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
        folder = _folder(model, made, full=full)
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


def _folder(model: MultimodalModel | str | Path, made: Path, *, full: bool) -> Path:
    if isinstance(model, MultimodalModel):
        return model.save(made, full=full)
    folder = unpacked(model) if is_pack(model) else Path(model).expanduser()
    if full and not verify_checkpoint(folder).full:
        return load(folder).save(made, full=True)
    verify_checkpoint(folder)
    return folder
