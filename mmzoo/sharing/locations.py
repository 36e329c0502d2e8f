"""Find a shared model: turn what a user writes into the place that serves it, and into a folder that can be loaded.

me/clip-prefix-gpt2                     a repository on the Hub
me/clip-prefix-gpt2@v1                  the same at a branch, tag or commit
file:///zoo/me/clip-prefix-gpt2         the same in a plain folder
s3://bucket/zoo/me/clip-prefix-gpt2@v1  the same in an object store: s3, gs, az, abfs, or what else fsspec knows
clip-prefix-gpt2.mmzoo                  a pack, one file
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from mmzoo.checkpoints.folder import read_manifest
from mmzoo.errors import HubError
from mmzoo.sharing.repository import Remote, SharedModel
from mmzoo.sharing.unpack import check_pack_plugins, is_pack, unpacked

if TYPE_CHECKING:
    from mmzoo.sharing.store import Store

MAX_NAME = 255  # bytes, of one step of a path
NOT_FOLDERS = frozenset({"http", "https", "hf"})  # read-only, or the Hub itself
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*")
_HOST = re.compile(r"[\w.+-]+://[^/]*")
_CREDENTIALS = re.compile(r"://([^/@]*:(?!\d+/[^@]*$).*@|.*\?)", re.S)  # a password before the host (a port is none), or a query


def is_repository(model: str | Path) -> bool:
    """Return whether this names a repository, and no folder or pack."""
    if isinstance(model, Path) or is_pack(model):
        return False
    name = _split(model)[0]
    return _is_url(name) or (_REPOSITORY.fullmatch(name) is not None and not Path(model).exists())


def is_folder(model: str | Path) -> bool:
    """Return whether this names a folder, and no repository or pack."""
    return not (is_repository(model) or is_pack(model))


def pull(repo: str, *, revision: str | None = None, to: str | Path | None = None) -> Path:
    """Fetch a shared model and verify it. Nothing of it is loaded, and its plugins need not be installed.

    Args:
        repo: ``"me/name"``, ``"file:///a/folder/me/name"`` or ``"s3://bucket/me/name"``; ``@REVISION`` may follow.
        revision: a branch, tag or commit; None for ``main``.
        to: the folder to put it in, which must be new, empty, or an older checkpoint; None for a cache.

    Returns:
        The folder, for `mmzoo.load`.

    Raises:
        HubError: the repository or revision does not exist, or cannot be reached. CheckpointError: it is no complete checkpoint,
            or holds what a checkpoint must not; ``to`` is then unchanged.
    """
    remote, chosen = open_remote(repo, revision)
    return remote.fetch(chosen, None if to is None else Path(to))


def search(query: str | None = None, *, at: str | None = None, limit: int = 50, **parts: str) -> list[SharedModel]:
    """Search for shared models.

    Args:
        query: a word of the name.
        at: the URL of a folder of ``owner/name`` folders, such as ``"file:///zoo"`` or ``"s3://bucket/zoo"``; None for the Hub.
        limit: how many models to return at most.
        parts: ``encoder``, ``fusion``, ``language_model``, ``task``: the name of the entry, with its variant; ``dataset``.

    Raises:
        HubError: it cannot be reached, or ``at`` is no URL of a folder.
    """
    tags = [f"{'' if kind == 'dataset' else 'mmzoo-'}{kind.replace('_', '-')}:{name}" for kind, name in parts.items()]
    if at is None:
        from mmzoo.sharing.huggingface import search as search_hub

        return search_hub(query, tags, limit)
    _check_credentials(at)
    from mmzoo.sharing.folder import search as search_folder

    return search_folder(_open_url(at), query, tags, limit)


def local_folder(model: str | Path, *, revision: str | None = None) -> Path:
    """Return the folder of a model, which is pulled or unpacked if need be. The plugins that a pack needs must be installed."""
    if is_repository(model):
        return pull(str(model), revision=revision)
    if revision is not None:
        what = "a pack" if is_pack(model) else "a folder"
        raise HubError(f"{model}: is {what}, which has no revision '{revision}'; a repository is written owner/name")
    if not is_pack(model):
        return Path(model).expanduser()
    folder = unpacked(model)
    check_pack_plugins(model, read_manifest(folder))
    return folder


def open_remote(repo: str, revision: str | None = None) -> tuple[Remote, str | None]:
    """Return the repository that a name or URL stands for, and the revision that was asked for."""
    _check_credentials(repo)
    name, own = _split(repo)
    if own and revision and own != revision:
        raise HubError(f"{repo}: names one revision, and '{revision}' is another")
    if (revision := revision or own) is not None:
        check_revision(revision)
    if _is_url(name):
        from mmzoo.sharing.folder import FolderRepository

        return FolderRepository(_open_url(name)), revision
    if not _REPOSITORY.fullmatch(name):
        raise HubError(f"'{repo}' is no repository: write owner/name, or file:///folder/owner/name")
    from mmzoo.sharing.huggingface import HubRepository

    return HubRepository(name), revision


def check_revision(revision: str) -> None:
    """Raise a `HubError` if no branch, tag or commit can have this name."""
    if not (len(revision) < MAX_NAME and _REVISION.fullmatch(revision)):
        raise HubError(f"'{revision[:80]}' is no revision: name a branch, a tag or a commit")


def _is_url(name: str) -> bool:
    return "://" in name or name.startswith("file:")


def _split(repo: str) -> tuple[str, str | None]:
    """Split ``NAME@REVISION``. In ``abfs://container@account/zoo``, the ``@`` belongs to the name."""
    head, at, revision = repo.rpartition("@")
    return (head, revision) if at and head and not _HOST.fullmatch(head) else (repo, None)


def _check_credentials(url: str) -> None:
    if _CREDENTIALS.search(url):
        raise HubError(
            f"{url.partition(':')[0]}://...: a URL is shown and written into cards, so it must hold no credentials and no '?'. "
            "Put credentials where the package for the protocol looks for them, such as the environment"
        )


def _open_url(url: str) -> Store:
    scheme = url.partition(":")[0]
    if not _is_url(url) or scheme in NOT_FOLDERS:
        raise HubError(f"{url}: is no URL of a folder: write file:///folder/... or s3://bucket/..., or owner/name for the Hub")
    if ".." in unquote(url).split("/"):
        raise HubError(f"{url}: write a URL without '..'")
    from mmzoo.sharing.store import open_local_store, open_store

    return open_local_store(_local_path(url)) if scheme == "file" else open_store(url)


def _local_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise HubError(f"{url}: write file:///folder/owner/name, with three slashes")
    path = Path(url2pathname(parts.path))
    if "\0" in str(path) or any(len(os.fsencode(part)) > MAX_NAME for part in path.parts):
        raise HubError(f"{url[:80]}...: no file system takes such a name")
    return path
