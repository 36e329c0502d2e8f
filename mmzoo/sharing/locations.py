"""Where a shared model is: from what a user writes to the place that serves it, and to a folder that can be loaded.

me/clip-prefix-gpt2              a repository on the Hub
me/clip-prefix-gpt2@v1           the same at a branch, tag or commit
file:///zoo/me/clip-prefix-gpt2  the same in a plain folder
clip-prefix-gpt2.mmzoo           a pack, one file that needs no place
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from mmzoo.checkpoints.folder import read_manifest
from mmzoo.errors import HubError
from mmzoo.sharing.repository import Remote, SharedModel
from mmzoo.sharing.unpack import check_pack_plugins, is_pack, unpacked

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MAX_NAME = 255  # bytes, of one step of a path
_REVISION = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*")


def is_repository(model: str | Path) -> bool:
    """Whether this names a repository, and no folder or pack."""
    if isinstance(model, Path) or is_pack(model):
        return False
    name = _split(model)[0]
    return name.startswith("file:") or (_REPOSITORY.fullmatch(name) is not None and not Path(model).exists())


def is_folder(model: str | Path) -> bool:
    """Whether this names a folder, and no repository or pack."""
    return not (is_repository(model) or is_pack(model))


def pull(repo: str, *, revision: str | None = None, to: str | Path | None = None) -> Path:
    """Fetch a shared model and verify it. Nothing of it is loaded, and its plugins need not be installed.

    Args:
        repo: ``"me/name"``, or ``"file:///a/folder/me/name"``; ``@REVISION`` may follow.
        revision: a branch, tag or commit; None for ``main``.
        to: the folder to put it in, which must be new, empty, or an older checkpoint; None for a cache.

    Returns:
        The folder, for `mmzoo.load`.

    Raises:
        HubError: the repository or revision is not there, or cannot be reached. CheckpointError: what is there is no whole
            checkpoint, or holds what a checkpoint must not; ``to`` is then as it was.
    """
    remote, chosen = open_remote(repo, revision)
    return remote.fetch(chosen, None if to is None else Path(to))


def search(query: str | None = None, *, at: str | None = None, limit: int = 50, **parts: str) -> list[SharedModel]:
    """Shared models.

    Args:
        query: a word of the name.
        at: ``"file:///a/folder"`` of ``owner/name`` folders; None for the Hub.
        parts: ``encoder``, ``fusion``, ``language_model``, ``task``: the name of the entry, with its variant; ``dataset``.

    Raises:
        HubError: it cannot be asked.
    """
    tags = [f"{'' if kind == 'dataset' else 'mmzoo-'}{kind.replace('_', '-')}:{name}" for kind, name in parts.items()]
    if at is None:
        from mmzoo.sharing.huggingface import search as on_hub

        return on_hub(query, tags, limit)
    from mmzoo.sharing.folder import search as in_folder

    if not (folder := _path(at)).is_dir():
        raise HubError(f"{at}: there is no such folder")
    return in_folder(folder, query, tags, limit)


def local_folder(model: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a model that is one, or that is pulled or unpacked.

    Raises:
        HubError: a revision of a folder or pack; else as `pull`. CheckpointError: as `mmzoo.sharing.unpack.unpacked`.
        MissingPlugin: a plugin that a pack needs.
    """
    if is_repository(model):
        return pull(str(model), revision=revision)
    packed = is_pack(model)
    if revision is not None:
        what = "a pack" if packed else "a folder"
        raise HubError(f"{model}: is {what}, which has no revision '{revision}'; a repository is written owner/name")
    if packed:
        folder = unpacked(model)
        check_pack_plugins(model, read_manifest(folder))
        return folder
    return Path(model).expanduser()


def open_remote(repo: str, revision: str | None = None) -> tuple[Remote, str | None]:
    """The place that a repository's name stands for, and the revision that was asked for.

    Raises:
        HubError: it is no name of a repository.
    """
    name, own = _split(repo)
    if own and revision and own != revision:
        raise HubError(f"{repo}: names one revision, and '{revision}' is another")
    revision = revision or own
    if revision is not None and not (len(revision) < MAX_NAME and _REVISION.fullmatch(revision)):
        raise HubError(f"'{revision[:80]}' is no revision: name a branch, a tag or a commit")
    if name.startswith("file:"):
        from mmzoo.sharing.folder import FolderRepository

        return FolderRepository(_path(name)), revision
    if not _REPOSITORY.fullmatch(name):
        raise HubError(f"'{repo}' is no repository: write owner/name, or file:///folder/owner/name")
    from mmzoo.sharing.huggingface import HubRepository

    return HubRepository(name), revision


def _split(repo: str) -> tuple[str, str | None]:
    head, at, revision = repo.rpartition("@")
    return (head, revision) if at and head else (repo, None)


def _path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or ".." in unquote(parts.path).split("/"):
        raise HubError(f"{url}: write file:///folder/owner/name, with three slashes and without '..'")
    path = Path(url2pathname(parts.path))
    if "\0" in str(path) or any(len(os.fsencode(part)) > MAX_NAME for part in path.parts):
        raise HubError(f"{url[:80]}...: no file system takes such a name")
    return path
